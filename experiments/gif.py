"""A GIF of a trained policy at its task: its first evaluation episode that is a success, or its best. Or one that fails.

    python experiments/gif.py --policy runs/FOLDER/policy_100000.pt            # experiments/images/{env_id}.gif
    python experiments/gif.py --policy runs/FOLDER/policy_100000.pt --failure  # experiments/images/{env_id}_failure.gif
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import tyro
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from meta_sac_lag import Actor, episode_seed, make_env


def main(policy: Path, failure: bool = False, output: Path | None = None, episodes: int = 40, seed: int = 1,
         width: int = 240):  # fmt: skip
    """Plays pi_det, at most 10 s of it at 10 frames a second.

    Args:
        policy: a policy_*.pt of either script
        failure: its first episode that violates, or its worst
        output: the file to write; None: experiments/images/{env_id}.gif, or {env_id}_failure.gif
        episodes: how many to try until one is a success, or violates
        seed: of the evaluation's episodes
        width: of the picture, in pixels
    """
    saved = torch.load(policy, map_location="cpu", weights_only=True)
    env = make_env(saved["env_id"], SimpleNamespace(capture_video=True, real_robot=False), saved)
    actor = Actor(**saved["sizes"]).requires_grad_(False)
    actor.load_state_dict(saved["actor"])
    every = max(1, round(env.metadata["render_fps"] / 10))
    best = None
    for k in range(episodes):
        (obs, _), frames, done = env.reset(seed=episode_seed(seed, k, stream=1)), [], False
        while not done:
            if env.told == [] or len(env.told) % every == 0:
                frame = Image.fromarray(env.render())
                frames.append(frame.resize((width, round(width * frame.height / frame.width))))
            action = actor(torch.from_numpy(obs)[None], log_pi=False)[2][0].numpy()
            obs, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
        episode = info["episode"]
        merit = episode.get("success", 0.0), -episode["violation"], episode["episodic_return"]
        pick = min if failure else max
        best = pick(best or (merit, k, frames), (merit, k, frames), key=lambda found: found[0])
        if episode.get("violation" if failure else "success"):
            break
    env.close()
    (success, violation, total), k, frames = best
    output = output or ROOT / "experiments" / "images" / f"{saved['env_id']}{'_failure' * failure}.gif"
    first, *others = (frame.quantize(64, dither=Image.Dither.NONE) for frame in frames[:100])
    first.save(output, save_all=True, append_images=others, duration=100, loop=0)
    ends = "a success" if success else "a violation" if violation else "no success, no violation"
    print(f"{output}: episode {k}, {ends}, return {total:.1f}, {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    tyro.cli(main)
