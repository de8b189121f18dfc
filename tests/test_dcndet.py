import pytest

from dcndet import quiet_import


def test_only_the_line_about_onedl_is_swallowed(capsys):
    def imported():
        print("Could not import OneDL")
        print("something else")
        raise ImportError

    with pytest.raises(ImportError), quiet_import():
        imported()
    assert capsys.readouterr().out == "something else\n"
