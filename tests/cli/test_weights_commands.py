"""The commands teachers, inspect, export and methods."""

import torch
from safetensors.torch import load_file

from fastadaad import cli, load_model, methods
from fastadaad.models.robust_teachers import ROBUST_TEACHERS
from fastadaad.models.weights_writing import save_weights


def test_teachers_lists_every_teacher_with_its_figures(capsys):
    assert cli.main(["teachers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for teacher in ROBUST_TEACHERS:
        columns = [teacher.name, teacher.data, teacher.network, f"{teacher.natural:.2f}", f"{teacher.autoattack:.2f}"]
        assert columns in [line.split() for line in lines]


def test_inspect_prints_network_normalisation_and_the_command_to_train(tmp_path, capsys):
    path = tmp_path / "Chen2021LTD_WRN34_10.pt"
    with torch.device("meta"):
        names = load_model("wrn-34-10").state_dict()
    tensors = {f"module.{name}": torch.zeros(()).expand(tensor.shape) for name, tensor in names.items()}
    torch.save({"state_dict": tensors | {"module.sub_block1.layer.0.bn1.weight": torch.ones(16)}}, path)
    assert cli.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    for fact in ("state_dict", "1 unused", "wrn-34-10", "85.21 % natural, 56.94 % AutoAttack"):
        assert fact in out, fact
    assert f"fastadaad train RECIPE teacher.name=wrn-34-10 teacher.checkpoint={path}" in out.splitlines()[-1]


def test_inspect_of_an_unknown_network_shows_its_first_names(tmp_path, capsys):
    torch.save({"stem.weight": torch.zeros(3), "head.bias": torch.zeros(2)}, tmp_path / "w.pt")
    assert cli.main(["inspect", str(tmp_path / "w.pt")]) == 0
    out = capsys.readouterr().out
    assert "unknown to fastadaad" in out
    assert "stem.weight, head.bias" in out


def test_inspect_and_export_choose_a_network_by_its_prefix(tmp_path, capsys):
    networks = {"student": load_model("cnn-4"), "teacher": load_model("rescnn-4")}
    tensors = {f"{name}.{key}": value for name, model in networks.items() for key, value in model.state_dict().items()}
    path, out = tmp_path / "w.ckpt", tmp_path / "out.safetensors"
    torch.save({"state_dict": tensors, "epoch": 3, "hyper_parameters": {"root": tmp_path}}, path)
    for command in (["inspect", str(path)], ["export", str(path), str(out)]):
        assert cli.main(command) == 2
        assert "several networks (student, teacher): choose one with prefix='student'" in capsys.readouterr().err
    assert cli.main(["inspect", str(path), "--prefix", "teacher"]) == 0
    printed = capsys.readouterr().out
    for fact in ("rescnn-4", "epoch, hyper_parameters", f"teacher.checkpoint={path} teacher.prefix=teacher"):
        assert fact in printed, fact
    assert cli.main(["export", str(path), str(out), "--prefix", "teacher"]) == 0
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(load_model("rescnn-4", checkpoint=out).eval()(x), networks["teacher"].eval()(x))


def test_inspect_of_a_missing_file_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path / "w.pt")]) == 2
    assert (
        capsys.readouterr().err
        == f"fastadaad: {tmp_path / 'w.pt'} does not exist: give a .safetensors, .pt or .pth file\n"
    )


def test_export_writes_and_refuses_to_overwrite(tmp_path, capsys):
    save_weights(tmp_path / "w.safetensors", load_model("cnn-4"))
    arguments = ["export", str(tmp_path / "w.safetensors"), str(tmp_path / "out.safetensors")]
    assert cli.main(arguments) == 0
    assert "cnn-4 or cnn-4-s1" in capsys.readouterr().out
    assert load_file(tmp_path / "out.safetensors").keys() == load_file(tmp_path / "w.safetensors").keys()
    assert cli.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


def test_methods_lists_every_method_with_all_its_options(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    for method in methods.METHODS.values():
        assert f"  {method.name} " in out
        for option in method.reads:
            assert option in out
