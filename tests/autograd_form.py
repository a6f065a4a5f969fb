# Algorithm 1, lines 15 to 19, as one would write them first: autograd keeps the graph of everything, the networks'
# gradients on B included, and differentiates through all three steps of RMSProp and through the critics themselves. No
# program: the tests execute it in the place of meta_sac_lag.py's lines 15 to 19, which must do the same.
epsilon_leaf, alpha_leaf = epsilon.detach().requires_grad_(), alpha.detach().requires_grad_()
nu_new, nu_square_new = rmsprop(nu, J_c.detach() - epsilon_leaf, nu_square, args.nu_lr, 1e-20)
L = J_r - alpha_leaf * J_h - nu_new * (J_c - epsilon_leaf)
dL_dphi = flat(torch.autograd.grad(L, tuple(actor.parameters()), create_graph=True))
phi_new, phi_square_new = rmsprop(phi.clone(), dL_dphi, phi_square, args.policy_lr, 1e-12)
B_new = D.sample(args.batch_size)
action_new, _, _ = functional_call(actor, unflat(phi_new, actor), B_new.obs, {"log_pi": False})
q_r, q_c = qr(B_new.obs, action_new).amin(0), qc(B_new.obs, action_new).amax(0)
if args.epsilon_objective == "linear":
    nu_copy = nu_new.detach()
    J_epsilon = (nu_copy * q_c - q_r).mean()
else:
    J_epsilon = torch.where(q_r < 0, q_r * q_c, q_r * (1 - q_c)).mean()
(grad_epsilon,) = torch.autograd.grad(J_epsilon, epsilon_leaf, retain_graph=True, create_graph=True)
sign = 1 if args.epsilon_step == "ascent" else -1
epsilon_new, epsilon_square_new = rmsprop(
    epsilon.detach(), sign * grad_epsilon, epsilon_square, args.epsilon_lr, 1e-20
)
S_0 = D_0.sample(args.batch_size)
_, _, action_det = functional_call(actor, unflat(phi_new, actor), S_0.obs, {"log_pi": False})
q_r_0, q_c_0 = qr(S_0.obs, action_det).amin(0), qc(S_0.obs, action_det).amax(0)
J_alpha = (q_r_0 - nu_new * (q_c_0 - epsilon_new.detach())).mean()
(grad_alpha_direct,) = torch.autograd.grad(J_alpha, alpha_leaf, retain_graph=True)
(grad_alpha_via_epsilon,) = torch.autograd.grad(nu_new.detach() * epsilon_new, alpha_leaf)
grad_alpha = grad_alpha_direct + (grad_alpha_via_epsilon if args.alpha_through_epsilon else 0)
log_alpha.grad = -(alpha * grad_alpha).detach()
alpha_optimizer.step()
