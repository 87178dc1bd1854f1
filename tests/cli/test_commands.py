"""Verbs of plugins."""

import json
import subprocess
import sys

PLUGIN = """
import typer
from kdray import CommandSpec, ConfigError, hookimpl

def size(path: str, twice: bool = False):
    '''The length of a name.'''
    if path == "none":
        raise ConfigError("there is no such thing")
    typer.echo(len(path) * (2 if twice else 1))

@hookimpl
def kdray_commands():
    return [CommandSpec("NAME", size HELP)]
"""


def load(desk, *names, help=""):
    for i, name in enumerate(names):
        desk.write(f"plugin{i}.py", PLUGIN.replace("NAME", name).replace(" HELP", help))
    desk.write("kdray.toml", f"[plugins]\nload = {json.dumps([f'plugin{i}.py' for i in range(len(names))])}\n")


def test_a_command(desk):
    load(desk, "size")
    assert desk("size", "abc", "--twice").out == "6\n"
    shown = desk("size", "--help")
    assert shown.code == 0 and "The length of a name." in shown.out and "--twice" in shown.out
    assert desk.refused("size", "none") == "error: there is no such thing\n"
    assert desk("size").code == 2


def test_commands_are_listed(desk):
    load(desk, "size", help=', help="Counts."')
    (row,) = json.loads(desk("list", "commands", "--json").out)
    assert (row["name"], row["summary"], row["plugin"]) == ("size", "Counts.", "plugin0")
    assert "Counts." in desk("list", "commands").out
    assert "commands: size" in desk("plugins").out


def test_a_slip_of_the_pen(desk):
    load(desk, "size")
    assert "unknown command 'sise'. Did you mean 'size'?" in desk.refused("sise")
    assert "unknown command 'trian'. Did you mean 'train'?" in desk.refused("trian")


def test_names_of_kdray_are_taken(desk):
    load(desk, "train")
    assert "kdray has a verb of this name itself; rename the command" in desk("plugins").out
    assert "Distil a student" in desk("train", "--help").out


def test_two_plugins_with_one_name(desk):
    load(desk, "size", "size")
    message = desk.refused("size", "abc", code=3)
    assert "command 'size' is defined by more than one plugin" in message and "local:plugin0" in message


def test_arguments_that_no_command_line_has(desk):
    load(desk, "size")
    plugin = PLUGIN.replace("NAME", "size").replace(" HELP", "")
    desk.write("plugin0.py", plugin.replace("path: str", "path: int | str"))
    assert "its arguments cannot be read from a command line" in desk("plugins").out


def test_help_loads_no_plugins(desk):
    desk.write("loud.py", "print('loaded')")
    desk.write("kdray.toml", '[plugins]\nload = ["loud.py"]\n')
    result = subprocess.run([sys.executable, "-m", "kdray", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "loaded" not in result.stdout and "kdray list commands" in result.stdout
