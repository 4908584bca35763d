"""What a shell completes behind `entirespace`: jobs, settings, the files of groups, and values that a comment lists.

The script has all of them in it, so that a completion starts no Python.
"""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from jobs.command_line import settings_of
from jobs.help_page import comments_of
from jobs.listing import JOBS, JobEntry, choices_of
from pipeline.errors import InputError

SHELLS = ("bash", "zsh", "fish")
#: "newest | best: the one that …" in the comment of a setting lists its values.
_VALUES = re.compile(r"[a-z][a-z0-9_]*(?: \| [a-z][a-z0-9_]*)+")


def completion_script(shell: str) -> str:
    """Return the completion script for a shell. Raises InputError for a shell that is not one of `SHELLS`."""
    if shell not in SHELLS:
        raise InputError(f"{shell} is not one of {', '.join(SHELLS)}.")
    words = {job.name: completed_words(job) for job in JOBS}
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](words)


def completed_words(job: JobEntry) -> dict[str, list[str]]:
    """Return the settings of a job, dotted, each with the values that are known for it; groups come first."""
    found = {group: [choice.name for choice in choices] for group, choices in choices_of(job.name).items()}
    comments = comments_of(job.schema)
    for setting in settings_of(job.schema):
        if setting.key not in found and not is_dataclass(setting.type):
            found[setting.key] = _listed_values(setting.type, comments.get(setting.key, ""))
    return found


def _listed_values(kind: Any, comment: str) -> list[str]:
    if kind is bool:
        return ["true", "false"]
    listed = _VALUES.match(comment)
    return listed[0].split(" | ") if listed and kind is str else []


_Words = dict[str, dict[str, list[str]]]

_BASH_AND_ZSH = """\
_entirespace_settings() {{
  case "$1" in
{settings}
  esac
}}
_entirespace_values() {{
  case "$1" in
{values}
  esac
}}
"""


def _functions(words: _Words) -> str:
    settings = [f"    {job}) printf '%s\\n' {' '.join(f'{key}=' for key in keys)};;" for job, keys in words.items()]
    values = [
        f"    {job}.{key}) printf '%s\\n' {' '.join(found)};;"
        for job, keys in words.items()
        for key, found in keys.items()
        if found
    ]
    return _BASH_AND_ZSH.format(settings="\n".join(settings), values="\n".join(values))


_BASH = """\
# Completion of entirespace for bash. Put this line into ~/.bashrc:  source <(entirespace completion bash)
{functions}
_entirespace() {{
  local line="${{COMP_LINE:0:COMP_POINT}}" job current key
  current="${{line##*[[:space:]]}}"
  read -r _ job _ <<< "$line "
  COMPREPLY=()
  if [[ "$line" =~ ^[[:space:]]*[^[:space:]]+[[:space:]]+[^[:space:]]*$ ]]; then
    mapfile -t COMPREPLY < <(compgen -W "{jobs} completion --help --version" -- "$current")
  elif [[ $job == completion ]]; then
    mapfile -t COMPREPLY < <(compgen -W "{shells}" -- "$current")
  elif [[ $current == *=* ]]; then
    key="${{current%%=*}}"
    mapfile -t COMPREPLY < <(compgen -W "$(_entirespace_values "$job.$key")" -- "${{current#*=}}")
    if (( ! ${{#COMPREPLY[@]}} )) && [[ -z "$(_entirespace_values "$job.$key")" ]]; then
      mapfile -t COMPREPLY < <(compgen -f -- "${{current#*=}}")
      compopt -o filenames 2>/dev/null
    fi
    # Without = among the characters that end a word, bash replaces the key too.
    [[ $COMP_WORDBREAKS == *=* ]] || COMPREPLY=("${{COMPREPLY[@]/#/$key=}}")
  else
    mapfile -t COMPREPLY < <(compgen -W "$(_entirespace_settings "$job") --help --config-dir" -- "$current")
    [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
  fi
  return 0
}}
complete -F _entirespace entirespace"""


def _bash(words: _Words) -> str:
    return _BASH.format(functions=_functions(words), jobs=" ".join(words), shells=" ".join(SHELLS))


_ZSH = """\
#compdef entirespace
# Completion of entirespace for zsh. Put this line into ~/.zshrc, behind compinit:  source <(entirespace completion zsh)
{functions}
_entirespace() {{
  local job=$words[2] current=$words[CURRENT] key
  local -a found
  if (( CURRENT == 2 )); then
    found=({jobs})
    _describe job found
    compadd -- --help --version
  elif [[ $job == completion ]]; then
    compadd -- {shells}
  elif [[ $current == *=* ]]; then
    key=${{current%%=*}}
    found=(${{(f)"$(_entirespace_values $job.$key)"}})
    compset -P '*='
    if (( $#found )); then compadd -- $found; else _files; fi
  else
    found=(${{(f)"$(_entirespace_settings $job)"}})
    compadd -S '' -- $found
    compadd -- --help --config-dir
  fi
}}
compdef _entirespace entirespace"""


def _zsh(words: _Words) -> str:
    jobs = " ".join(f"'{job}:{_in_quotes(about)}'" for job, about in _jobs_in_words())
    return _ZSH.format(functions=_functions(words), jobs=jobs, shells=" ".join(SHELLS))


def _fish(words: _Words) -> str:
    lines = [
        "# Completion of entirespace for fish:  entirespace completion fish > ~/.config/fish/completions/entirespace.fish",
        "complete -c entirespace -e",
        "complete -c entirespace -n 'not string match -q -- \"*=*\" (commandline -ct)' -f",
        "complete -c entirespace -n __fish_use_subcommand -f -l help -d 'list the jobs'",
        "complete -c entirespace -n __fish_use_subcommand -f -l version",
    ]
    for job, about in _jobs_in_words():
        lines.append(f"complete -c entirespace -n __fish_use_subcommand -f -a {job} -d '{_in_quotes(about)}'")
    for job, keys in words.items():
        seen = f"complete -c entirespace -n '__fish_seen_subcommand_from {job}'"
        lines.append(f"{seen} -a '{' '.join(f'{key}=' for key in keys)}'")
        lines += [
            f"{seen} -a '{' '.join(f'{key}={value}' for value in found)}'" for key, found in keys.items() if found
        ]
    lines.append(f"complete -c entirespace -n '__fish_seen_subcommand_from completion' -f -a '{' '.join(SHELLS)}'")
    return "\n".join(lines)


def _jobs_in_words() -> Iterator[tuple[str, str]]:
    yield from ((job.name, job.about) for job in JOBS)
    yield "completion", "Print a script that completes jobs, settings and their values."


def _in_quotes(text: str) -> str:
    """Put text inside the quotes of a shell."""
    return text.replace("'", "’").replace(":", " –")
