"""Dataset → trained entire-space model, in PyTorch. Each room is a package; read them in the order that a batch takes:

    feed           plan (who reads what at which step), files and columns, checked; Petastorm; collated batches
    model          embeddings, towers, the behaviour graph and its losses, put together in entire_space
    distributed    the ranks, where tables are stored, ids out and rows back, the towers' gradients, the optimizers
    checkpoint     files without pickle, saved beside training and restored on any number of ranks
    evaluation     metrics by one protocol, and the report
    run            settings, the trainer's loop, validation, evaluation, the journal
    planning       jobs.plan: does a run fit a cluster?
    gbdt           jobs.gbdt: trees in place of a network
    serving        a run as a scorer of requests; training.load("RUN") opens one
    submission     jobs.submit: the chain as jobs of a cluster
    export         jobs.export: a run as a folder that a service takes

A room imports only rooms above it in this list. Of pipeline/ it imports the ground alone: dataset (the contract), errors,
locations, kernels and html (docs/architecture.md; `make lint` holds it).

Suffixes of arrays and tensors in all of training/: B impressions · C contexts · F fields · D width of a scope's inputs ·
H width of a layer · V values · R rows of a row group · L labels · N contexts or impressions, whichever the scope is."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.serving.scorer import Scorer


def load(run: str | os.PathLike[str], checkpoint: str = "newest", device: str = "cpu") -> "Scorer":
    """Load the model of a run as a scorer of requests; docs/serving.md shows it.

    `run` is the folder that jobs.train wrote, `checkpoint` newest, best or step-N, `device` cpu or cuda. Raises
    InputError where there is no such run, checkpoint or device, or a file is damaged.
    """
    from training.serving.open_run import open_scorer  # here: it loads torch, which the settings of a run do without

    return open_scorer(run, checkpoint, device)
