"""What a notebook shows: tables of HTML, a bar, a curve while training, and summaries by layer."""

import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

import reformer_c as rc
from reformer_c.models.presets import preset_config
from reformer_c.text.tables import html_pairs, html_table, text_table
from reformer_c.training.data import Windows
from reformer_c.training.evaluation import evaluate
from reformer_c.training.train import StepReport

EVIL = "<script>alert('&')</script>"
CONFIG = preset_config("tiny", 64, width=16)


def encoder_decoder(**fields):
    decoder = replace(CONFIG, **fields)
    encoder = replace(decoder, is_decoder=False, local_num_chunks_after=1)
    return rc.ReformerEncoderDecoder(encoder, decoder=decoder, rng=0)


def trainer(**options):
    model = rc.ReformerModelWithLMHead(CONFIG, rng=0)
    return rc.Trainer(model, Windows(np.arange(300) % 250, length=32), steps=3, **options)


class Table(HTMLParser):
    """The caption and the cells of a table; refuses tags that are not a table's."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.caption = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert tag in ("table", "caption", "thead", "tbody", "tr", "th", "td"), tag
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open[-1] == "caption":
            self.caption += text
        else:
            self.rows[-1][-1] += text


# ---- tables ----


def test_a_table_escapes_every_text():
    for text in (html_table(EVIL, [EVIL], [[EVIL]]), html_pairs(EVIL, {EVIL: EVIL})):
        table = Table(text)
        assert table.caption == EVIL
        assert {cell for row in table.rows for cell in row} == {EVIL}


def test_long_values_are_cut():
    [[_, value]] = Table(html_pairs("", {"a": "x" * 5000})).rows
    assert len(value) == 100
    assert value.endswith("x...")


def test_columns_are_as_wide_as_their_longest_cell():
    lines = text_table(["a", "bb"], [["xxx", "1"], ["y", "222"]], left=1).split("\n")
    assert lines == ["a     bb", "xxx    1", "y    222"]


# ---- objects ----


def config_of_labels():
    return rc.ReformerConfig(id2label={0: EVIL, 1: "b"}, num_labels=2)


SHOWN = {
    "model": lambda: rc.ReformerModelWithLMHead(CONFIG, rng=0),
    "bare model": lambda: rc.ReformerModel(CONFIG, rng=0),
    "masked": lambda: rc.ReformerForMaskedLM(replace(CONFIG, is_decoder=False), rng=0),
    "questions": lambda: rc.ReformerForQuestionAnswering(
        replace(CONFIG, is_decoder=False), rng=0, dtype=np.float64
    ),
    "classifier": lambda: rc.ReformerForSequenceClassification(
        replace(CONFIG, is_decoder=False, position_embedding_type="sinusoidal"), rng=0
    ),
    "encoder-decoder": encoder_decoder,
    "config": config_of_labels,
    "default config": rc.ReformerConfig,
    "generation config": lambda: rc.GenerationConfig(max_new_tokens=5),
    "step memory": lambda: rc.ReformerModelWithLMHead(CONFIG, rng=0).memory(32),
    "summary": lambda: rc.ReformerModelWithLMHead(CONFIG, rng=0).summary(),
    "step": lambda: StepReport(1, 2.0, None, 0.1, 1.0, 3.0, None, held_out={EVIL: 1.0}),
    "skipped step": lambda: StepReport(1, float("nan"), None, 0.0, 0.0, 3.0, 5, targets=0),
    "evaluation": lambda: evaluate(rc.ReformerModelWithLMHead(CONFIG, rng=0), np.arange(20), 8),
    "trainer": lambda: trainer(schedule=rc.schedules.cosine(3)),
    "endless trainer": lambda: rc.Trainer(
        rc.ReformerModelWithLMHead(CONFIG, rng=0), Windows(np.arange(99), length=32)
    ),
    "LSH report": lambda: rc.lsh_report(
        np.random.default_rng(0).standard_normal((40, 8)), num_hashes=[1, 2], chunk_length=4
    ),
    "LSH tuning": lambda: rc.tune_lsh(
        *np.random.default_rng(0).standard_normal((2, 300, 8)), recall=0.5
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_an_object_is_a_short_table(name):
    value = SHOWN[name]()
    table = Table(value._repr_html_())
    assert table.caption
    assert len({len(row) for row in table.rows}) <= 1
    assert len(table.rows) <= 24
    assert all(len(cell) <= 100 for row in table.rows for cell in row)


def test_tables_say_what_the_objects_are(tmp_path):
    model = rc.ReformerModelWithLMHead(CONFIG, rng=0)
    rows = dict(Table(model._repr_html_()).rows)
    assert rows["parameters"] == f"{model.num_parameters():,}"
    assert rows["layers"] == "3: 2 local, 1 lsh"
    rows = dict(Table(config_of_labels()._repr_html_()).rows)
    assert rows["id2label"] == f"{{0: {EVIL!r}, 1: 'b'}}"
    assert dict(Table(rc.GenerationConfig(top_k=5)._repr_html_()).rows) == {"top_k": "5"}
    run = trainer(folder=tmp_path / "<b>", seed=7)
    next(iter(run))
    rows = dict(Table(run._repr_html_()).rows)
    assert (rows["step"], rows["seed"]) == ("1 of 3", "7")
    assert rows["folder"].endswith("<b>") or rows["folder"].endswith("...")
    report = SHOWN["LSH report"]()
    table = Table(report._repr_html_())
    printed = [line.split() for line in str(report).split("\n")[1:]]
    assert table.rows[1:] == printed


# ---- the sizes of a model ----


@pytest.mark.parametrize("fields", [{}, {"axial_pos_embds": False}, {"reversible": False}])
def test_a_summary_adds_up(fields):
    model = rc.ReformerModelWithLMHead(replace(CONFIG, **fields), rng=0)
    for length, batch in ((64, 1), (7, 3)):
        summary = model.summary(length, batch)
        assert sum(part.parameters for part in summary.parts) == model.num_parameters()
        assert sum(part.nbytes for part in summary.parts) == 4 * model.num_parameters()
        assert summary.step == model.memory(length, batch)
        layers = [part for part in summary.parts if part.layer_type]
        assert [part.layer_type for part in layers] == model.config.layer_types
        everything = sum(part.activations for part in layers)
        # what a large budget keeps
        assert model.memory(length, batch, memory_budget=2**40).kept == everything
        assert all(0 < part.backward <= summary.step.total for part in layers)
    lines = str(summary).split("\n")
    assert f"{model.num_parameters():,}" in lines[-1]
    assert f" takes {summary.step.total / 1e6:,.2f} (" in lines[0]
    assert model.summary().step == model.memory(64)


def test_a_summary_of_two_sides_adds_up():
    model = encoder_decoder()
    summary = model.summary(32, 16, 2)
    assert sum(part.parameters for part in summary.parts) == model.num_parameters()
    assert summary.step == model.memory(32, 16, 2)
    layers = [part for part in summary.parts if part.layer_type]
    assert len(layers) == 6
    everything = sum(part.activations for part in layers)
    assert model.memory(32, 16, 2, memory_budget=2**40).kept == everything
    assert model.summary().step == model.memory(64)
    assert model.summary(32).step == model.memory(32)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((65,), ValueError, "length must be at most 64"),
        ((8.5,), TypeError, "length must be an integer"),
        ((8, 0), ValueError, "batch must be"),
    ],
)
def test_a_summary_checks_its_sizes(arguments, error, words):
    with pytest.raises(error, match=words):
        rc.ReformerModelWithLMHead(CONFIG, rng=0).summary(*arguments)


def test_how_parameters_are_counted_is_checked():
    with pytest.raises(TypeError, match=r"^exclude_embeddings must be True or False"):
        rc.ReformerModel(CONFIG, rng=0).num_parameters(exclude_embeddings="no")


# ---- a curve while training ----


def test_a_curve_is_drawn_from_the_reports():
    figure = pytest.importorskip("matplotlib.figure", reason="plots need matplotlib")
    ax = figure.Figure().subplots()
    held_out = np.arange(40)
    run = trainer(held_out=held_out, evaluate_every=1)
    reports = [*rc.plot.live(run, ax, seconds=0)]
    assert [report.step for report in reports] == [1, 2, 3]
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert ax.lines[0].get_ydata().tolist() == [report.bits_per_byte for report in reports]
    assert ax.lines[2].get_label() == "held out"


def test_what_a_curve_is_drawn_from_is_checked_at_once():
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    with pytest.raises(ValueError, match=r"^seconds must be a finite number >= 0, got -1"):
        rc.plot.live(trainer(), seconds=-1)


def test_steps_without_a_loss_are_not_drawn():
    figure = pytest.importorskip("matplotlib.figure", reason="plots need matplotlib")
    ax = figure.Figure().subplots()
    skipped = StepReport(1, float("nan"), float("nan"), 0.0, 0.0, 1.0, None, targets=0)
    assert [*rc.plot.live([skipped], ax, seconds=0)] == [skipped]
    assert not ax.lines
    taken = replace(skipped, step=2, loss=1.0, bits_per_byte=1.4)
    assert len([*rc.plot.live([skipped, taken], ax, seconds=0)]) == 2
    assert ax.lines[0].get_xdata().tolist() == [2]


# ---- in a kernel ----

CELLS = [
    "import numpy as np, reformer_c as rc\n"
    "from reformer_c.models.presets import preset_config\n"
    "from reformer_c.training.progress import show_count, show_progress\n"
    "from reformer_c.training.data import Windows\n"
    "model = rc.ReformerModelWithLMHead(preset_config('tiny', 64, width=16), rng=0)\n"
    "make = lambda: rc.Trainer(model, Windows(np.arange(300) % 250, length=32), steps=3)\n"
    "model",
    "model.config",
    "model.summary()",
    "make()",
    "reports = [*show_progress(make())]\nreports[-1]",
    "with show_count('tokens') as progress:\n    progress(0, 2); progress(2, 2)",
    "for report in rc.plot.live(make(), seconds=0):\n    pass",
    "rc.lsh_report(np.random.default_rng(0).standard_normal((40, 8)), num_hashes=[1])",
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A notebook of `CELLS` that has run."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs notebooks")
    nbformat = pytest.importorskip("nbformat", reason="nbformat writes notebooks")
    for library in ("ipywidgets", "matplotlib", "tqdm"):
        pytest.importorskip(library, reason="of the notebook extra")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    folder = {"metadata": {"path": tmp_path_factory.mktemp("notebook")}}
    client = nbclient.NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources=folder
    )
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()
    return notebook


def data_of(cell):
    return [output.data for output in cell.outputs if "data" in output]


@pytest.mark.filterwarnings("default")  # the machinery of Jupyter warns about itself
@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 7])
def test_objects_are_tables_in_a_kernel(number, ran):
    assert "<table>" in data_of(ran.cells[number])[-1]["text/html"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("number", "what"), [(4, "3/3"), (5, "2/2")])
def test_progress_is_a_widget_in_a_kernel(number, what, ran):
    [bar, *_] = data_of(ran.cells[number])
    widgets = ran.metadata.widgets["application/vnd.jupyter.widget-state+json"].state
    box = widgets[bar["application/vnd.jupyter.widget-view+json"]["model_id"]].state
    parts = [widgets[name.removeprefix("IPY_MODEL_")].state for name in box.children]
    assert any(what in str(part.get("value")) for part in parts)


@pytest.mark.filterwarnings("default")
def test_a_kernel_shows_one_figure_that_is_replaced(ran):
    [figure] = data_of(ran.cells[6])
    assert len(figure["image/png"]) > 10_000
