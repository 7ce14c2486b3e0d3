"""Several processes, each with its GPU, that train the same adapter: each takes its part of every batch (accelerate).

The images, noise and timesteps are those of one process, and so is the sum of the gradients: the adapter is the same,
up to rounding.
"""

import torch


class Team:
    """The processes of an ``accelerate.Accelerator``. One of them, which ``leads``, writes the files."""

    def __init__(self, accelerator):
        self.accelerator, self.leads = accelerator, accelerator.is_main_process

    def share(self, n):
        """What this process works on of a batch of n, and the weight of its mean loss in that of the whole batch.

        Where there are fewer images than processes all do the same.
        """
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        if n < size:
            return slice(None), 1 / size
        part = slice(rank * n // size, (rank + 1) * n // size)
        return part, (part.stop - part.start) / n

    def add_up(self, losses, parameters):
        """Sum the gradients, in place, and the losses over all processes, in one message; returns the losses."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        tensors = [losses.detach(), *gradients]
        flat = self.accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), "sum")
        summed = [
            part.view_as(tensor)
            for part, tensor in zip(flat.split([tensor.numel() for tensor in tensors]), tensors, strict=True)
        ]
        for gradient, total in zip(gradients, summed[1:], strict=True):
            gradient.copy_(total)
        return summed[0]
