from dcndet.models.engine.cli import ROOT, default_work_dir


def test_configs_of_one_name_do_not_share_a_work_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [
        str(default_work_dir(path))
        for path in (
            ROOT / "configs/bccd/a.py",
            "configs/mine/a.py",
            "other/a.py",
            "/elsewhere/a.py",
        )
    ]
    data = default_work_dir("configs/mine/a.py", tmp_path / "cards")
    assert [*found, str(data)] == [
        "work_dirs/bccd/a",
        "work_dirs/mine/a",
        "work_dirs/other/a",
        "work_dirs/elsewhere/a",
        "work_dirs/mine/a/cards",
    ]
