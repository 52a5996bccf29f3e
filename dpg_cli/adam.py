"""Adam and AdamW, with torch's own fused kernel."""

import torch
from torch import Tensor

from dpg_cli.networks import Gradient, Network


class Adam:
    """Adam (Kingma & Ba 2015, Algorithm 1), with an L2 penalty or with decoupled weight decay.

    The steps are those of `torch.optim.Adam(fused=True)`, bit for bit, and with decoupled decay those of
    `torch.optim.AdamW`. torch's bookkeeping is omitted: for networks of a few hundred units it takes longer than the
    kernel. A step works elementwise, so that members do not affect each other. The count of steps is a tensor on the
    parameters' device, so that a step can be captured.

    Args:
        network: its parameters are updated in place.
        lr: learning rate.
        l2: this multiple of the parameters is added to the gradient.
        weight_decay: each step first multiplies the parameters by 1 - lr · weight_decay (Loshchilov & Hutter 2019).
    """

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8
    CLEARED_EVERY = 100  # steps
    PIECES, SMALLEST = 64, 2**11  # pieces of a tensor on a GPU, and fewest parameters in a piece

    def __init__(self, network: Network, lr: float, l2: float = 0.0, weight_decay: float = 0.0):
        self.network = network
        self.lr, self.l2, self.weight_decay = lr, l2, weight_decay
        flat = network.flat.detach()
        self.mean, self.square = torch.zeros_like(flat), torch.zeros_like(flat)
        self.count = torch.zeros((), device=flat.device)
        self._until_cleared = self.CLEARED_EVERY  # steps

    def step(self, gradient: Gradient) -> None:
        """Update the parameters, given their gradient."""
        self.count += 1
        if self.weight_decay:
            self.network.flat.detach().mul_(1 - self.lr * self.weight_decay)
        if torch.compiler.is_compiling():
            self._step_by_operations(gradient)
            return
        own = (self.network.flat.detach(), self.mean, self.square)
        if isinstance(gradient, Tensor):
            flat, mean, square = map(self._in_pieces, own)
            gradients = self._in_pieces(gradient)
        else:
            flat, mean, square = map(self.network.views, own)
            gradients = gradient
        torch._fused_adam_(
            flat,
            gradients,
            mean,
            square,
            [],
            [self.count] * len(flat),
            lr=self.lr,
            beta1=self.BETAS[0],
            beta2=self.BETAS[1],
            weight_decay=self.l2,
            eps=self.EPSILON,
            amsgrad=False,
            maximize=False,
        )
        if self.mean.is_cpu:
            self._until_cleared -= 1
            if self._until_cleared == 0:
                self.clear_vanished()
                self._until_cleared = self.CLEARED_EVERY

    def static_tensors(self) -> list[Tensor]:
        """Every tensor that a step reads or writes and that persists between steps, except the network's."""
        return [self.mean, self.square, self.count]

    def _in_pieces(self, tensor: Tensor) -> list[Tensor]:
        """A tensor in pieces for torch's kernel, which uses little of a GPU for a single small tensor."""
        if tensor.is_cpu:
            return [tensor]
        size = -(-len(tensor) // self.PIECES // 4) * 4  # whole vectors of four
        return list(torch.split(tensor, max(self.SMALLEST, size)))

    def set_count(self, count: Tensor) -> None:
        """Set the number of steps taken so far, `()`."""
        self.count.copy_(count)
        self._until_cleared = self.CLEARED_EVERY - int(count) % self.CLEARED_EVERY

    def _step_by_operations(self, gradient: Gradient) -> None:
        """The same step for a compiler, which fuses these operations but cannot see into torch's kernel."""
        if isinstance(gradient, list):
            gradient = torch.cat([part.flatten() for part in gradient])
        beta1, beta2 = self.BETAS
        flat, count = self.network.flat.detach(), self.count.double()
        if self.l2:
            gradient = gradient.add(flat, alpha=self.l2)
        self.mean.lerp_(gradient, 1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        step_size = (self.lr / (1 - beta1**count)).to(flat.dtype)
        root = (1 - beta2**count).sqrt().to(flat.dtype)
        flat.sub_(step_size * self.mean / (self.square.sqrt() / root + self.EPSILON))

    def clear_vanished(self) -> None:
        """Set moments to zero that are too small to change a parameter, unless the parameter is as small.

        The moments of a dead unit decay to subnormal numbers, on which a step takes twice as long. A moment larger than
        `vanished` does not become subnormal before the next call.
        """
        vanished = 1e5 * torch.finfo(self.mean.dtype).tiny
        for moment in (self.mean, self.square):
            moment.copy_(torch.hardshrink(moment, vanished))
