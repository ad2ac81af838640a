r"""What needn't be said: Lightning's news of devices and products, and warnings of what is meant to be so."""

import logging
import warnings


def quieten() -> None:
    """Leaves out what Lightning says of devices and products, and what is meant to be as it is here."""
    for source in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
        logging.getLogger(source).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*is deprecated",  # Lightning 2.6 uses an old name of torch 2.13
        "The dirpath has changed from",  # a resumed run has a folder
        "Be aware that when using `ckpt_path`, callbacks",  # and checkpoints of its own
        "The '.*_dataloader' does not have many workers",  # a batch is drawn in a millisecond
        "The number of training batches",  # digits have fewer in a round than the logging interval
        ".*configure_optimizers` will be overridden",  # by that of --optimizer
    ):
        warnings.filterwarnings("ignore", message=message)
