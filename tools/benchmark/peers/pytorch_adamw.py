"""PyTorch's fused AdamW: one update of many tensors."""

import protocol


def prepare(settings):
    """See `protocol.serve`."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def draw(shape, scale):
        return scale * torch.randn(shape, generator=generator)

    parameters = [torch.nn.Parameter(draw(shape, 0.02)) for shape in settings["shapes"]]
    for parameter in parameters:
        parameter.grad = draw(parameter.shape, 0.01)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)

    def step():
        if settings["clip_norm"] is not None:
            torch.nn.utils.clip_grad_norm_(parameters, settings["clip_norm"])
        optimizer.step()
        return 0.0

    return {"versions": f"torch {torch.__version__}"}, {"run": protocol.timed_steps(step)}


if __name__ == "__main__":
    protocol.serve(prepare)
