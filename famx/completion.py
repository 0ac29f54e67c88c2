"""Prints what completes commands and settings in a shell: python -m famx.completion bash

bash: famx completion bash > ~/.local/share/bash-completion/completions/famx
zsh:  famx completion zsh > "${fpath[1]}/_famx", with compinit in ~/.zshrc
fish: famx completion fish > ~/.config/fish/completions/famx.fish

The script holds all words, so that completing starts no Python; after an update, print it again.
"""

import argparse
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from famx.__main__ import COMMANDS
from famx.analysis.settings import SECTIONS, Setting, part_settings, settings_of
from famx.config.command import Parser, run_command
from famx.optim._param_groups import DEFAULTS
from famx.parts import GROUPS, PRESETS, presets
from famx.registry import PARTS, ROOMS, names

OVERRIDABLE = ("data", "decode", "famx_parts", "trainer.device", "trainer.threads")
"""Beginnings of the settings that `famx evaluate` takes."""
HYDRA = ("hydra.run.dir=", "hydra.sweep.dir=", "hydra/launcher=")
WORD = re.compile(r"[\w./=-]+")  # safe in each shell without quotes

# Each script completes a path where no word fits, which includes those after `resume=`.
# A word with a value is offered once its key is complete.
BASH = r"""# completion of famx for bash, written by `famx completion bash`
_famx() {
    local line="${COMP_LINE:0:COMP_POINT}" words="" keys="" values="" prefix
    local word="${line##*[[:space:]]}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        keys="COMMANDS"
    else
        case "${COMP_WORDS[1]}" in
CASES
        esac
    fi
    case "$word" in *=*) words="$values" ;; *) words="$keys" ;; esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    # bash splits words at =, so that what is before it is there already
    if [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        prefix="${word%"${word##*=}"}"
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
    if [[ "${COMPREPLY[0]:-}" == *= ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o default -F _famx famx
"""
BASH_CASE = """\
        {command})
            keys="{keys}"
            values="{values}"
            ;;"""
ZSH = r"""#compdef famx
# completion of famx for zsh, written by `famx completion zsh`
_famx() {
    local -a keys values
    if (( CURRENT == 2 )); then
        compadd -- COMMANDS
        return
    fi
    case "${words[2]}" in
CASES
    esac
    if [[ "$PREFIX" == *=* ]]; then
        compadd -- $values || { compset -P '*='; _files; }
    else
        compadd -S '' -- ${(M)keys:#*=}
        compadd -- ${keys:#*=} || _files
    fi
}
if [ "$funcstack[1]" = "_famx" ]; then _famx "$@"; else compdef _famx famx; fi
"""
ZSH_CASE = """\
        {command})
            keys=({keys})
            values=({values})
            ;;"""
FISH = r"""# completion of famx for fish, written by `famx completion fish`
complete -c famx -n __fish_use_subcommand -f -a "COMMANDS"
CASES
"""
FISH_CASE = """\
complete -c famx -n "__fish_seen_subcommand_from {command}; and not string match -q -- '*=*' \
(commandline -ct)" -a "{keys}"
complete -c famx -n "__fish_seen_subcommand_from {command}; and string match -q -- '*=*' \
(commandline -ct)" -a "{values}\""""
SCRIPTS = {"bash": (BASH, BASH_CASE), "zsh": (ZSH, ZSH_CASE), "fish": (FISH, FISH_CASE)}


def script(shell: str) -> str:
    """Returns the script that completes famx in a shell, one of `SCRIPTS`."""
    text, case = SCRIPTS[shell]
    cases = []
    for command in COMMANDS:
        keys, values = words_of(command)
        cases.append(case.format(command=command, keys=" ".join(keys), values=" ".join(values)))
    return text.replace("COMMANDS", " ".join(COMMANDS)).replace("CASES", "\n".join(cases))


def words_of(command: str) -> tuple[list[str], list[str]]:
    """Returns what may follow a command: options and `KEY=`, and `KEY=VALUE` of known values."""
    keys = options_of(command)
    values: list[str] = []
    if command == "parts":
        keys += GROUPS
    elif command == "completion":
        keys += SCRIPTS
    elif command in ("train", "evaluate"):
        for word in setting_words():
            if command == "train" or word.startswith(OVERRIDABLE):
                (keys if word.endswith("=") else values).append(word)
    return keys, values


def options_of(command: str) -> list[str]:
    """Returns the options that the file of a command names, without importing it."""
    spec = importlib.util.find_spec(f"famx.{command}")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    return sorted({"--help", *re.findall(r'"(--[a-z][a-z-]*)"', text)})


def setting_words() -> list[str]:
    """Returns all settings as `KEY=`, and `KEY=VALUE` for each known value."""
    words = [*HYDRA]
    for room in ROOMS:
        words += [f"{room}=", *(f"{room}={name}" for name in names(room))]
    for group in PRESETS:
        words += [f"{group}=", *(f"{group}={entry.name}" for entry in presets(group))]
    for setting in _settings():
        kinds = DEFAULTS if ".KIND." in setting.key else [""]
        for kind in kinds:
            key = setting.key.replace("KIND", kind)
            words += [f"{key}=", *(f"{key}={value}" for value in _values(setting))]
    return [word for word in dict.fromkeys(words) if WORD.fullmatch(word)]


def _settings() -> Iterator[Setting]:
    """Yields the settings of all sections and of all parts."""
    for section in SECTIONS:
        yield from settings_of(section)
    for room in ROOMS:
        for name in names(room):
            yield from part_settings(room, PARTS[room][name])


def _values(setting: Setting) -> list[str]:
    """Returns the values that the type of a setting names."""
    if setting.kind.startswith("true or false"):
        return ["true", "false"]
    return re.findall(r"`(\S+?)`", setting.kind)


def main() -> int:
    """Prints the script of a shell."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m famx.completion", description=__doc__, formatter_class=form)
    parser.add_argument("shell", choices=tuple(SCRIPTS), help="shell that reads the script")
    print(script(parser.parse_args(sys.argv[1:]).shell), end="")
    return 0


if __name__ == "__main__":
    run_command(main)
