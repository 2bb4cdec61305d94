"""Checks on LoRA's arithmetic and on memory: the exercises on what is trained and what it takes."""

from __future__ import annotations

from helpers.workshop.checks.kinds import MATRIX, NUMBER, NUMBERS, WHOLE, Check, near, same

SIZES: dict[str, Check] = {
    "lora-size": Check(
        WHOLE,
        near(
            294_912,
            "Draw the two thin matrices. Write rows and columns on each, then count their numbers and add.",
            [
                (14336 * 4096, "these are the numbers of the frozen matrix."),
                (16 * 14336 * 4096, "the rank replaces one side of each thin matrix; it does not multiply the whole."),
                (16 * 14336, "this is one of the two thin matrices."),
                (16 * 4096, "this is one of the two thin matrices."),
                (14336 + 4096, "this would be right for another, smaller rank."),
            ],
            tolerance=0,
        ),
        "half a percent of the matrix is trained, which is why gradients and optimizer states become small.",
    ),
    "lora-share": Check(
        NUMBER,
        near(
            0.5787,
            "Sum over the seven matrices first: rank times (inputs + outputs).",
            [
                (0.5787 / 32, "this is the adapter of one block, and the model has many."),
                (0.005787, "this is the share as a number below 1; the question asks for percent."),
                (41_943_040, "this is how many numbers are trained. Which share of the whole model is it?"),
                (1_310_720, "this is how many numbers are trained in one block."),
                (
                    0.5754,
                    "this is the share of model and adapter together, as PEFT has it. Leave the adapter out below.",
                ),
                (0.6010, "this compares with the linear layers only. The embeddings are part of the model too."),
            ],
            decimals=3,
        ),
        "so a file of well under 200 MB changes how a model of 14 GB behaves.",
    ),
    "lora-merge": Check(
        MATRIX,
        same(
            [[3.0, 0.0, 4.0], [2.0, 3.0, 2.0], [0.0, -2.0, 1.0]],
            "the formula of the task holds for every x. What has to be added to W so that x can be left out?",
            [
                (
                    [[2.0, 0.0, 3.0], [1.0, 2.0, 1.0], [0.0, -1.0, 1.0]],
                    "something scales the product of the two matrices.",
                ),
                ([[1.5, 0.0, 2.5], [0.5, 1.5, 0.5], [0.0, -0.5, 1.0]], "the scale is the other way up."),
                ([[2.0, 0.0, 2.0], [2.0, 2.0, 2.0], [0.0, -2.0, 0.0]], "this is what is added. To what?"),
                ([[3.0, 2.0, 0.0], [0.0, 3.0, -2.0], [4.0, 2.0, 1.0]], "rows and columns are exchanged."),
            ],
        ),
        "a merged model answers exactly as fast as the base model, because nothing is left beside the matrix.",
    ),
    "quantize": Check(
        NUMBERS,
        same(
            [1.2, -0.4, 0.4, -1.2],
            "go one weight at a time: divide by the scale, take the nearest level, multiply by the scale.",
            [
                ([1.0, -1 / 3, 1 / 3, -1.0], "these are levels. The model computes with weights, in their own size."),
                ([0.4, -0.4, 0.4, -1.2], "for the first weight, which level is really the nearest?"),
                ([1.2, -0.4, -0.4, -1.2], "look at the third weight once more: between which levels does it lie?"),
            ],
            decimals=1,
        ),
        "the error is the price of 4 bit; small blocks keep it small, since one large weight spoils only its block.",
    ),
    "nf4-bits": Check(
        NUMBER,
        near(
            4.12695,
            "Take a block of 64 weights. Add up the bits of its weights, its scale, and its part of the scale's scale.",
            [
                (4, "the levels alone mean nothing without the scales."),
                (4.125, "the scales are stored in a short form too, and that form has a scale of its own."),
                (4.5, "the scales of the blocks take one byte each here, not four."),
                (0.51587, "this is in bytes."),
            ],
            tolerance=0.0002,
            decimals=3,
        ),
        "QLoRA's second quantization, that of the scales, is what brings the overhead from half a bit to an eighth.",
    ),
    "full-memory": Check(
        NUMBER,
        near(
            108.004,
            "Bytes a parameter, times parameters, divided by 2**30.",
            [
                (115.968, "this is in GB, of 10**9 bytes. GPU memory is counted in GiB."),
                (13.5005, "these are the weights. Training needs more than them."),
                (81.003, "one of the four rows of the table is missing."),
                (54.002, "Adam keeps two numbers a parameter."),
            ],
            decimals=0,
        ),
        "that is more than one card of 80 GB, before a single activation is stored.",
    ),
    "qlora-memory": Check(
        NUMBER,
        near(
            4.2443,
            "Three parts: what is frozen in 4 bit, what is frozen in 16 bit, and what is trained. Do each by itself.",
            [
                (4.5573, "this is in GB, of 10**9 bytes. GPU memory is counted in GiB."),
                (3.8536, "everything frozen is there; what is trained takes memory too."),
                (3.7438, "the embeddings and the head are frozen, and they are not in 4 bit."),
                (3.3531, "these are the weights in 4 bit."),
            ],
            decimals=1,
        ),
        "this is what leaves room on a free card of 15 GiB for the activations of a batch.",
    ),
}
"""The checks by exercise."""
