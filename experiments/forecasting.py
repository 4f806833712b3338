"""Forecasting: hourly measurements of an electricity transformer, 96 hours to the next 96 to 720.

A Reformer with an input map and a head of its own reads the hours that are known, and as many rows
without values as there are hours to forecast, each with its hour, weekday, day and month; the head
reads the forecast from the latter. "values" gives and forecasts values, "changes" their differences
from the last known hour. The baseline is linear: each channel's hours ahead from its known hours,
as differences from the last, by least squares (the idea of NLinear, Zeng et al. 2023).

FILE is ETTh1.csv (Zhou et al. 2021), divided as there: 12, 4 and 4 months of 30 days to train, to
validate and to test; values are standardised with the mean and deviation of the first.
"""

import csv
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from pathlib import Path

import numpy as np

import reformer_c as rc
from reformer_c import ops
from reformer_c.files.checkpoint import write_safetensors
from reformer_c.models.presets import DROPOUTS

from .language import of
from .training import curve, fit

SEEDS = [0]
SIZE = {
    "horizons": [96, 192, 336, 720], "known": 96, "months": [12, 4, 4], "layers": 2, "width": 64,
    "rounds": 2, "chunk": 32, "batch": 16, "steps": 250, "lr": 1e-3, "evaluate_every": 50,
    "validated": 128,
}  # fmt: skip
QUICK = {
    "horizons": [4, 40], "known": 16, "months": [1, 1, 1], "layers": 1, "width": 16, "chunk": 8,
    "batch": 2, "steps": 4, "evaluate_every": 2, "validated": 4,
}  # fmt: skip
MODELS = {
    "linear": "linear, by least squares",
    "values": "Reformer of values",
    "changes": "Reformer of changes",
}
MONTH = 30 * 24
# columns of the input that are not values: hour, weekday, day, month, and whether the row is known
MORE = 5


@dataclass(frozen=True)
class Hours:
    """Standardised values (n, c), and the calendar (n, 4), of consecutive hours."""

    values: np.ndarray
    calendar: np.ndarray
    about: dict


def prepare(files, size):
    if len(files) > 1:
        raise ValueError(f"forecasting reads one file, got {len(files)}")
    if min(size["months"]) < 1 or len(size["months"]) != 3:
        raise ValueError(f"--set: months must be three numbers >= 1, got {size['months']}")
    count = sum(size["months"]) * MONTH
    dates, values = read(files[0], count) if files else waves(count)
    calendar = [(d.hour / 23, d.weekday() / 6, (d.day - 1) / 30, (d.month - 1) / 11) for d in dates]
    about = {"series": Path(files[0]).name if files else "waves", "crc32": zlib.crc32(values)}
    train = values[: size["months"][0] * MONTH]
    values = (values - train.mean(0)) / train.std(0)
    return Hours(values.astype(np.float32), np.array(calendar, np.float32) - 0.5, about)


def read(file, count):
    """The first dates and values (count, c) of a CSV file with a column of dates."""
    with open(file, newline="", encoding="utf-8") as lines:
        _, *rows = csv.reader(lines)
    if len(rows) < count:
        raise ValueError(f"{file} must have at least {count:,} hours, got {len(rows):,}")
    dates = [datetime.fromisoformat(row[0]) for row in rows[:count]]
    return dates, np.array([row[1:] for row in rows[:count]], float)


def waves(count, channels=7):
    """Dates and values of days and weeks with noise, for those who lack a file."""
    rng = np.random.default_rng(0)
    hours = np.arange(count)[:, None]
    phase, level = rng.uniform(0, 2 * np.pi, (2, channels)), 0.05 * rng.standard_normal(channels)
    day, week = (np.sin(2 * np.pi * hours / n + p) for n, p in zip((24, 168), phase, strict=True))
    noise = 0.3 * rng.standard_normal((count, channels))
    start = datetime(2016, 7, 1)
    dates = [start + timedelta(hours=i) for i in range(count)]
    return dates, day + 0.5 * week + level * np.sqrt(hours) + noise


def windows(part, horizon, settings):
    """The first hours of all windows of a part; those after the first part know earlier hours."""
    ends = MONTH * np.cumsum([0, *settings["months"]])
    first = max(0, ends[part] - settings["known"])
    return np.arange(first, ends[part + 1] - settings["known"] - horizon + 1)


def grid(size, seeds):
    common = {name: value for name, value in size.items() if name != "horizons"}
    return {
        f"{model}, {horizon} hours, seed {seed}": common
        | {"model": model, "horizon": horizon, "seed": seed}
        for seed in seeds
        for horizon in size["horizons"]
        for model in (MODELS if seed == seeds[0] else [*MODELS][1:])
    }


def run(settings, hours, folder):
    test = windows(2, settings["horizon"], settings)
    if settings["model"] == "linear":
        return errors(Linear(hours, settings).forecast, hours, test, settings)
    model = Forecaster(hours, settings)
    some = windows(1, settings["horizon"], settings)
    some = some[np.linspace(0, len(some) - 1, settings["validated"], dtype=int)]
    lines = fit(
        model, Batches(hours, settings), settings, folder,
        held_out=lambda model, seed: errors(model.forecast, hours, some, settings),
    )  # fmt: skip
    return {"validated": curve(lines, itemgetter("mse"))} | errors(
        model.forecast, hours, test, settings
    )


def errors(forecast, hours, starts, settings):
    """Mean squared and mean absolute error over windows, hours ahead and channels."""
    squares, distances = [], []
    for some in np.array_split(starts, -(-len(starts) // 32)):
        known, ahead = parts(hours.values, some, settings)
        error = forecast(some, known) - ahead
        squares.append((error**2).mean((1, 2)))
        distances.append(np.abs(error).mean((1, 2)))
    both = (np.concatenate(x).mean(dtype=float) for x in (squares, distances))
    return dict(zip(("mse", "mae"), (round(float(x), 5) for x in both), strict=True))


def parts(rows, starts, settings):
    """Rows of windows: those known (b, known, c) and those ahead (b, horizon, c)."""
    whole = rows[starts[:, None] + np.arange(settings["known"] + settings["horizon"])]
    return np.split(whole, [settings["known"]], axis=1)


class Linear:
    """Each channel's hours ahead from its known hours, both from the last, by least squares."""

    def __init__(self, hours, settings):
        squares = products = 0
        for some in np.array_split(windows(0, settings["horizon"], settings), 64):
            known, ahead = parts(hours.values.astype(float), some, settings)
            x = self.inputs(known)
            y = (ahead - known[:, -1:]).swapaxes(1, 2).reshape(len(x), -1)
            squares, products = squares + x.T @ x, products + x.T @ y
        self.weights, *_ = np.linalg.lstsq(squares, products, rcond=None)

    @staticmethod
    def inputs(known):
        """Changes and a one (b c, known): the last change is always 0, the one takes its place."""
        x = (known - known[:, -1:]).swapaxes(1, 2).reshape(-1, known.shape[1])
        x[:, -1] = 1
        return x

    def forecast(self, starts, known):
        b, _, c = known.shape
        changes = (self.inputs(known) @ self.weights).reshape(b, c, -1).swapaxes(1, 2)
        return known[:, -1:] + changes


class Batches:
    """Random windows of the first part, as a function of (seed, step)."""

    bytes_per_token = None  # a loss per byte is that of a text

    def __init__(self, hours, settings):
        self.hours, self.settings = hours, settings
        self.starts = windows(0, settings["horizon"], settings)

    def batch(self, step):
        rng = np.random.default_rng((self.settings["seed"], step))
        starts = rng.choice(self.starts, self.settings["batch"])
        _, ahead = parts(self.hours.values, starts, self.settings)
        return {"inputs_embeds": starts[:, None], "labels": ahead}

    def describe(self):
        return self.hours.about


class Forecaster:
    """A Reformer with a linear input and a linear head; its loss is the mean squared error."""

    def __init__(self, hours, settings):
        self.hours, self.settings = hours, settings
        width, channels = settings["width"], hours.values.shape[1]
        config = rc.ReformerConfig(
            attn_layers=["lsh"] * settings["layers"], hidden_size=width,
            feed_forward_size=2 * width, num_attention_heads=4, attention_head_size=width // 4,
            num_hashes=settings["rounds"], lsh_attn_chunk_length=settings["chunk"],
            max_position_embeddings=settings["known"] + settings["horizon"], axial_pos_embds=False,
            position_embedding_type="sinusoidal", vocab_size=1, **dict.fromkeys(DROPOUTS, 0.0),
        )  # fmt: skip
        self.model = rc.ReformerModel(config, rng=settings["seed"])
        rng = np.random.default_rng((settings["seed"], width))
        self.own = {
            "input.weight": 0.3 * rng.standard_normal((width, channels + MORE), np.float32),
            "input.bias": np.zeros(width, np.float32),
            "output.weight": 0.02 * rng.standard_normal((channels, 2 * width), np.float32),
            "output.bias": np.zeros(channels, np.float32),
        }
        self.parameters = {**self.model.parameters, **self.own}

    def save_pretrained(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / "model.safetensors", self.parameters)

    def count_targets(self, labels, **_):
        return len(labels)

    def base(self, known):
        """What values are differences from (b, 1, c)."""
        last = known[:, -1:]
        return last if self.settings["model"] == "changes" else np.zeros_like(last)

    def inputs(self, starts, known):
        """Rows (b, known + horizon, channels + MORE)."""
        b, t, c = known.shape
        rows = np.zeros((b, t + self.settings["horizon"], c + MORE), np.float32)
        rows[:, :t, :c] = known - self.base(known)
        rows[:, :t, -1] = 1
        before, after = parts(self.hours.calendar, starts, self.settings)
        rows[:, :, c:-1] = np.concatenate([before, after], 1)
        return rows

    def loss_and_gradients(self, inputs_embeds, *, labels, rng):
        starts, own, t = inputs_embeds[:, 0], self.own, self.settings["known"]
        known, _ = parts(self.hours.values, starts, self.settings)
        vectors, of_input = ops.linear_forward(
            self.inputs(starts, known), own["input.weight"], own["input.bias"]
        )
        states = self.model.forward(inputs_embeds=vectors, rng=rng)
        y, of_output = ops.linear_forward(
            np.ascontiguousarray(states[:, t:]), own["output.weight"], own["output.bias"]
        )
        error = y - (labels - self.base(known))
        d_states = np.zeros_like(states)
        d_states[:, t:], dw_output, db_output = ops.linear_backward(
            error * np.float32(2 / error.size), of_output
        )
        gradients, d_vectors = self.model.backward(d_states)
        _, dw_input, db_input = ops.linear_backward(d_vectors, of_input)
        gradients |= {
            "input.weight": dw_input, "input.bias": db_input,
            "output.weight": dw_output, "output.bias": db_output,
        }  # fmt: skip
        return float((error**2).mean()), gradients

    def forecast(self, starts, known):
        own, t = self.own, known.shape[1]
        vectors = ops.linear(self.inputs(starts, known), own["input.weight"], own["input.bias"])
        states = self.model(inputs_embeds=vectors, rng=self.settings["seed"]).last_hidden_state
        ahead = np.ascontiguousarray(states[:, t:])
        return self.base(known) + ops.linear(ahead, own["output.weight"], own["output.bias"])


# ---- results ----


def horizons(runs):
    return sorted({run["settings"]["horizon"] for run in runs})


def mean(runs, name, **values):
    return np.mean([run["result"][name] for run in of(runs, **values)])


def show(runs):
    ahead = horizons(runs)
    lines = [
        "| MSE / MAE | " + " | ".join(f"{n} hours" for n in ahead) + " |",
        "|---|" + "---|" * len(ahead),
    ]
    for model, label in MODELS.items():
        cells = [
            " / ".join(f"{mean(runs, x, model=model, horizon=n):.3f}" for x in ("mse", "mae"))
            for n in ahead
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(runs, figure):
    ax, ahead = figure.subplots(), horizons(runs)
    for model, label in MODELS.items():
        ax.plot(
            ahead, [mean(runs, "mse", model=model, horizon=n) for n in ahead], "o-", label=label
        )
    ax.set(xlabel="hours ahead", ylabel="mean squared error", ylim=(0, None))
    ax.legend()
