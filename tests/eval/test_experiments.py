"""All experiments, from the command line to the written files, on tiny networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learned import save_learned, tiny_nets

from autodrag.cli import main
from autodrag.eval import landmarks, mdd
from autodrag.eval.bench import Bench
from autodrag.eval.detectors import Detection
from autodrag.eval.run import parse
from autodrag.eval.tables import cells, markdown
from autodrag.nets.layers import Layers
from autodrag.nets.stylegan2 import Generator

COMMON = ["--pairs", "2", "--steps", "2", "--device", "cpu", "--jobs", "1"]


def run(protocol: str, checkpoint: Path, out: Path, *options: str) -> int:
    """Run an experiment and return the exit code."""
    return main(["eval", protocol, "--checkpoint", str(checkpoint), "--out", str(out), *COMMON, *options])


def table(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / "table.json").read_text())
    return rows


def untimed(value: Any) -> Any:
    """A table without its times, which are not reproducible."""
    if isinstance(value, list):
        return [untimed(item) for item in value]
    if isinstance(value, dict):
        timed = ("seconds", "mdd", "half_s")
        return {key: untimed(item) for key, item in value.items() if key not in timed}
    return value


@pytest.mark.parametrize(
    ("protocol", "options", "files"),
    [
        (
            "landmarks",
            ["--points", "1,all"],
            {"distance-1.png", "distance-3.png", "sheet-1.png", "sheet-3.png", "usual.json"},
        ),
        ("paired", ["--points", "4"], {"sheet-4.png"}),
        ("mdd", [], {"decay-1.png", "sheet-1.png"}),
        ("ccsd", [], {"sheet-1.png"}),
    ],
)
def test_run_resume_and_repeat(
    protocol: str,
    options: list[str],
    files: set[str],
    landmark_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    assert run(protocol, landmark_checkpoint, out, "--methods", "none,refine", *options) == 0
    expected = {"drags.jsonl", "images", "setup.json", "table.json", "table.md"} | files
    assert {item.name for item in out.iterdir()} == expected
    assert capsys.readouterr().out == (out / "table.md").read_text()
    first, lines = table(out), (out / "drags.jsonl").read_text().splitlines()
    assert {row["method"] for row in first} == {"none", "refine"} and all(row["drags"] == 2 for row in first)

    # After an interruption in the last drag, the resumed run gives the same table.
    (out / "drags.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:30])
    assert run(protocol, landmark_checkpoint, out, "--methods", "none,refine", *options) == 0
    assert untimed(table(out)) == untimed(first)

    # Methods can be added. Another seed is refused, and the same seed in another folder gives the same table.
    assert run(protocol, landmark_checkpoint, out, "--methods", "draggan", *options) == 0
    assert len((out / "drags.jsonl").read_text().splitlines()) == len(lines) // 2 * 3
    joined = table(out)
    assert untimed([row for row in joined if row["method"] != "draggan"]) == untimed(first)
    assert len(joined) == len(first) // 2 * 3
    capsys.readouterr()
    assert run(protocol, landmark_checkpoint, out, "--methods", "none", "--seed", "1", *options) == 2
    assert "holds a run with seed 0, but this run has 1" in capsys.readouterr().err
    assert run(protocol, landmark_checkpoint, tmp_path / "again", "--methods", "none,refine", *options) == 0
    assert untimed(table(tmp_path / "again")) == untimed(first)


def test_retrained_predictor_is_refused(
    tiny_generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "run", tmp_path / "learned"
    save_learned(folder, tiny_generator, tiny_nets(tiny_generator))
    assert run("paired", folder, out, "--methods", "predict", "--points", "2") == 0
    save_learned(folder, tiny_generator, tiny_nets(tiny_generator, push=0.1))
    capsys.readouterr()
    for methods in ("predict", "none"):  # the table would contain the old row of predict
        assert run("paired", folder, out, "--methods", methods, "--points", "2") == 2
        said = capsys.readouterr().err
        assert "settings of method 'predict' have changed" in said and said.count("\n") == 1


@pytest.mark.parametrize("protocol", ["paired", "mdd", "ccsd"])
def test_checkpoint_without_landmark_net(protocol: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert run(protocol, tiny_checkpoint, tmp_path / "run", "--methods", "none,refine") == 0
    assert json.loads((tmp_path / "run" / "setup.json").read_text())["flow"] == "dis"


def test_results_of_method_none(landmark_checkpoint: Path, tmp_path: Path) -> None:
    assert run("landmarks", landmark_checkpoint, tmp_path / "landmarks", "--methods", "none") == 0
    (row,) = table(tmp_path / "landmarks")
    assert row["share_of_none"] == pytest.approx(1.0) and row["frechet"] == pytest.approx(0.0, abs=1e-6)
    assert run("ccsd", landmark_checkpoint, tmp_path / "ccsd", "--methods", "none") == 0
    (row,) = table(tmp_path / "ccsd")
    assert row["mse"]["mean"] == 0.0 and row["ssim"]["mean"] == pytest.approx(1.0, abs=1e-3)
    assert run("mdd", landmark_checkpoint, tmp_path / "mdd", "--methods", "none") == 0
    (row,) = table(tmp_path / "mdd")
    assert row["end"]["quartiles"] == pytest.approx([1.0, 1.0, 1.0]) and row["half_s"] is None


BAD = [
    ("landmarks", ["--methods", "magic"], "method 'magic' is unknown"),
    ("landmarks", ["--methods", "none,userlt"], "has no userlt.safetensors"),
    ("landmarks", ["--methods", "predict"], "need a predict"),
    ("landmarks", ["--points", "4"], "--points 4: expected numbers from 1 to 3"),
    ("landmarks", ["--jobs", "0"], "--jobs 0: expected at least 1"),
    ("landmarks", ["--landmarks", "gone.onnx"], "landmark model 'gone.onnx' does not exist"),
    ("landmarks", ["--landmarks-size", "64"], "takes images of 32x32 px"),
    ("landmarks", ["--metrics", "torchmetrics"], "FID needs"),
    ("paired", ["--metrics", "torchmetrics"], "LPIPS needs"),
    ("paired", ["--flow", "raft"], "RAFT needs"),
    ("paired", ["--perturb", "0"], "expected a fraction in"),
    ("mdd", ["--stop", "never"], "--stop never: expected"),
    ("ccsd", ["--points", "many"], "--points many: expected"),
    ("speed", ["--methods", "magic"], "method 'magic' is unknown"),
    ("speed", ["--methods", "userlt"], "has no userlt.safetensors"),
    ("speed", ["--dtypes", "float8"], "--dtypes float8: expected"),
    ("speed", ["--max-steps", "1"], "--max-steps 1 --threads"),
]


@pytest.mark.parametrize(("protocol", "options", "sentence"), BAD)
def test_invalid_input_is_refused_before_the_measurements(
    protocol: str,
    options: list[str],
    sentence: str,
    landmark_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("autodrag.eval.bench.Bench.image", lambda *_: pytest.fail("the measurements have started"))
    shared = ["--out", str(tmp_path / "run"), "--checkpoint", str(landmark_checkpoint)]
    assert main(["eval", protocol, *shared, *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and sentence in said
    assert not (tmp_path / "run").exists()


def test_landmarks_need_a_model(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("landmarks", tiny_checkpoint, tmp_path / "run") == 2
    assert "has no landmarks.safetensors; train one with autodrag train landmarks" in capsys.readouterr().err


def test_landmark_rows_of_known_records(landmark_checkpoint: Path, tmp_path: Path) -> None:
    """Four results; one has no face, and one has a landmark far from its usual position."""
    words = ["--checkpoint", str(landmark_checkpoint), "--out", str(tmp_path), "--methods", "none", *COMMON]
    experiment = landmarks.LandmarkExperiment(parse(landmarks.LandmarkExperiment, words))
    usual = [[[4.0, 5.0]] * 3, [[6.0, 5.0]] * 3]
    (tmp_path / "usual.json").write_text(json.dumps(usual))
    shared = {"points": 1, "seconds": 1.0, "steps": 3, "initial": 10.0, "dai": {"1": 0.5}, "patch_distance": 1.0}
    none = [shared | {"method": "none", "distance": 10.0, "features": [c, 0.0], "shape": usual[0]} for c in (0.8, 0.9)]
    results = ((4.0, usual[0]), (2.0, [[50.0, 5.0]] * 3), (None, None), (3.0, usual[1]))
    edited = [shared | {"method": "refine", "distance": d, "features": [1.0, 1.0], "shape": s} for d, s in results]
    before, after = experiment.rows([*none, *edited])
    assert before["share_of_none"] == 1.0 and (before["drags"], after["drags"]) == (2, 4)
    assert after["distance"]["mean"] == pytest.approx(3.0) and after["distance"]["count"] == 3
    assert after["share_of_none"] == pytest.approx(0.3) and after["mean_steps"] == 3
    assert after["torn"] == 0.5  # one result without a face, one with an unlikely shape
    assert after["frechet"] == pytest.approx((1 - 0.85) ** 2 + 1 + 0.005, abs=1e-6)  # means and traces
    text = markdown(list(experiment.columns), cells(experiment.columns, [before, after]))
    assert "| 1 | refine | 3.00 ± 0.58 | 3.00 (2.50–3.50) | 1.00 ± 0.00 |" in text and "| 30% | 3 |" in text


def test_torn_share_of_known_shapes() -> None:
    """The limit of (x - 5)^2 / 2 + (y - 5)^2 / 0.001 is 0.5."""
    usual = torch.tensor([[[4.0, 5.0]], [[6.0, 5.0]]])
    assert landmarks.torn_share([[[5.0, 5.01]], [[5.0, 5.1]], None, [[5.5, 5.01]]], usual) == 0.5
    assert landmarks.torn_share([None], usual[:1]) is None and landmarks.torn_share([None], usual[:0]) is None


def test_usual_images_do_not_occur_in_pairs(make_bench: Callable[..., Bench]) -> None:
    """Images without a detected face are skipped."""
    drawn: list[torch.Tensor] = []

    class EverySecond:
        count, identity = 3, "every second"

        def __call__(self, image: torch.Tensor) -> Detection | None:
            drawn.append(image)
            return None if len(drawn) % 2 else Detection(image.mean(dim=(1, 2, 3)).expand(3, 2), None)

    bench = make_bench("--methods", "none")
    assert len(landmarks.usual_shapes(bench, EverySecond())) == 10 and len(drawn) == 20
    seen = torch.cat([bench.image(bench.latent(bench.base_seed + k)) for k in range(4)])
    assert all(not torch.allclose(image, one) for image in drawn for one in seen)


def test_decay_measures_only_moments_shown_by_a_curve() -> None:
    moments = [(0.0005 * k, Layers.of(torch.full((1, 1, 1), float(k)))) for k in range(2000)]
    thinned = mdd.thin(moments)
    assert len(thinned) < 30 and thinned[-1] is moments[-1]
    for time in mdd.TIMES:
        last = max(seconds for seconds, _ in moments if seconds <= time)
        assert last in [seconds for seconds, _ in thinned]


def test_times_of_the_table_are_a_subset_of_the_curve() -> None:
    assert set(mdd.SHOWN) <= set(mdd.TIMES) and mdd.TIMES[0] == 0.001 and mdd.TIMES[-1] == 100


def test_onnx_landmark_model(landmark_checkpoint: Path, tmp_path: Path) -> None:
    """An ONNX model with two points near the centre of the image."""
    from onnx import TensorProto, helper, save

    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gather", ["mean", "channels"], ["small"], axis=1),
        helper.make_node("Mul", ["small", "scale"], ["large"]),
        helper.make_node("Add", ["large", "middle"], ["points"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
        helper.make_tensor("channels", TensorProto.INT64, [2, 2], [0, 1, 1, 2]),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [8.0]),
        helper.make_tensor("middle", TensorProto.FLOAT, [], [15.0]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32])
    points = helper.make_tensor_value_info("points", TensorProto.FLOAT, [1, 2, 2])
    graph = helper.make_graph(nodes, "means", [image], [points], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    save(model, str(tmp_path / "model.onnx"))
    bare = tmp_path / "bare"
    shutil.copytree(landmark_checkpoint, bare)
    (bare / "landmarks.safetensors").unlink()
    options = ["--landmarks", str(tmp_path / "model.onnx"), "--methods", "none,refine", "--points", "all"]
    assert run("landmarks", bare, tmp_path / "run", *options) == 0
    rows = table(tmp_path / "run")
    assert [row["points"] for row in rows] == [2, 2] and rows[0]["frechet"] is None
    assert "| – |" in (tmp_path / "run" / "table.md").read_text()
