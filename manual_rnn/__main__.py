r"""`python -m manual_rnn`: the versions, the kernels that can run here, and where to go on."""

import platform

import torch

import manual_rnn

COMMANDS = """\
python -m manual_rnn.training    train ManualRNN beside nn.RNN (pip install 'manual_rnn[lab]')
pytest -n 2                      run the tests, in a checkout (pip install -e '.[test]')"""


def main() -> None:
    """Print it all."""
    print(
        f"manual_rnn {manual_rnn.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    print(f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads\n")
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        rnn, input = manual_rnn.ManualRNN(3, 4, device=device), torch.randn(5, 2, 3, device=device)
        print(f"kernels on {device}:\n{manual_rnn.explain_kernel(rnn, input)}\n")
    print(COMMANDS)


if __name__ == "__main__":
    main()
