"""The settings of a command: args.json < the files of --config, in order < the command line.

    python train.py --help                                        the settings that it uses, a line each
    python train.py --help train                                  all about a group of them, or a setting
    python train.py --config recipes/people_small.json --config mine.json --train.epochs 3 --run runs/try

All scripts share the args.json of the folder that the command is started in.
"""

import dataclasses
import errno
import itertools
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from foldface import registry
from foldface.files import InputError, read_json, visible
from foldface.head_fields import heads_among, split_heads
from foldface.rules import check, follow_layout
from foldface.runtime import Stopped, cores, is_main_process, keep_memory, quota
from foldface.settings import (
    GROUPS,
    RENAMED_VALUES,
    SWITCHES,
    Config,
    as_dict,
    at_home,
    change_heads,
    flatten,
    put,
)
from foldface.unpacked import fill_in
from foldface.urls import never_fetched, shown
from foldface.usage import check_names, meant_by, show_help, types_in_words

# What may change between two starts of one run: it decides where and how fast, not what comes out.
FREE = (
    "run",
    "output",
    "device",
    "submission",
    "log",
    "save_minutes",
    "plugins",
    "data.eval",
    "data.id_column",
    "data.sample_submission",
    "data.workers",
    "data.memory_gb",
    "crop.workers",
    "crop.shards",
    "train.only_folds",
    "train.final",
    "train.accumulate",
    "train.compile",
    "model.grad_checkpointing",
    "gan.",
    "app.",
    "inference.",
    "pseudo.",
    "sample.",
    "crop.detectors",
    "crop.size",
    "crop.margin",
    "crop.align",
)
DEFAULT_CONFIG = "args.json"


def make_parser(flags: dict[str, dict]) -> ArgumentParser:
    """The jsonargparse parser of a script's own flags and of all settings."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    for flag, keywords in flags.items():
        parser.add_argument(flag, **keywords)
    parser.add_class_arguments(Config)
    for action in parser._actions:
        action.option_strings = [word for word in action.option_strings if not word.endswith("+")]
    return parser


def read(
    doc: str,
    flags: dict[str, dict] | None = None,
    argv: Sequence[str] | None = None,
    used: Sequence[str] = tuple(GROUPS),
) -> Config:
    """The settings of this start: defaults < args.json < files named by --config, in order < command line.

    doc: the script's docstring, shown by --help. flags: {"--soft": {argparse keywords}} of one script alone. used:
    the groups, or single settings, that the script uses: --help shows them. All others are read too, from files, which
    all scripts share, and from the command line, whose words go from one script to the next.
    Returns a Config, with the values of `flags` as attributes of the same names, and two sets of dotted names beside
    them: `typed`, the settings on the command line, and `given`, those in the --config files too. Raises InputError in
    one line that names the key and, for a near miss, the key that was meant.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(argv):
        show_help(doc, flags or {}, used, words_of_help(argv))
        sys.exit(0)
    parser = make_parser(flags or {})
    configs, rest = split_configs(with_true(argv))
    changes, rest = split_heads(rest)
    known = [action.dest for action in parser._actions] + [flag.lstrip("-") for flag in flags or {}]
    typed = names_and_values(rest)
    check_names(typed, known, "--")
    for group, value in typed.items():
        if group in GROUPS:
            meant = [f"; or did you mean --{key} {value}?" for key in known if key.endswith(f".{group}") and value]
            raise InputError(f"--{group} is a group of settings: name one, --{group}.NAME VALUE; --help lists them"
                             + "".join(meant))  # fmt: skip
    typed |= {"task.heads": ""} if changes else {}
    given, shared = set(typed), [DEFAULT_CONFIG] * Path(DEFAULT_CONFIG).is_file()
    words, heads = [], as_dict(Config())["task"]["heads"]
    for number, path in enumerate(shared + configs):
        content = read_settings(path, known)
        mine = content.get("task", {}).get("heads")
        if isinstance(mine, dict):
            heads = content["task"]["heads"] = change_heads(heads, mine, f"{path}: ")
            words += ["--config", json.dumps(content)]
        else:
            heads = heads if mine is None else mine
            words += ["--config", path]
        refuse_what_a_run_may_not_name(path, content, typed)
        if number >= len(shared):  # what stands in args.json is a default of this folder's, not given
            given |= set(flatten(content))
    if changes:
        heads = change_heads(heads_among(rest) or heads, changes, "--")
        rest += ["--task.heads", json.dumps(heads)]
    try:
        parsed = parser.parse_args(words + rest)
        values = parser.instantiate(parsed)
    except ArgumentError as error:
        line = tidy(str(error))
        unknown = re.match(r"unrecognized arguments: (.*)", line, re.IGNORECASE)
        if unknown:
            raise InputError(meant_by(unknown[1].split(" "), known)) from None
        for key, names in RENAMED_VALUES.items():
            for old, new in names.items():
                line += f"; write {new} instead of {old}" if key in line and f": {old}" in line else ""
        raise InputError(line) from None
    config = Config(**{f.name: getattr(values, f.name) for f in dataclasses.fields(Config)})
    for flag in flags or {}:
        name = flag.lstrip("-").replace("-", "_")
        setattr(config, name, at_home(getattr(values, name)))
    config.typed, config.given = set(typed), given
    for key, value in flatten(as_dict(config)).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if re.search("\0|\\\\u0000|[\ud800-\udfff]", text):
            raise InputError(f"{key}: holds a NUL, or what is no UTF-8: {text}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            put(config, key, float(value) if isinstance(value, float) else int(value))  # not jsonargparse's subclass
        if isinstance(value, str) and value in RENAMED_VALUES.get(key, {}):
            raise InputError(f"{key} {value}: write {RENAMED_VALUES[key][value]} instead of {value}")
    put(config, "plugins", at_home([config.plugins] if isinstance(config.plugins, str) else config.plugins))
    registry.load(config.plugins)
    if (said := fill_in(config, given)) and is_main_process():
        print(said)
    follow_layout(config, given)
    return check(config)


def read_settings(path, known):
    """The content of a JSON file of settings. Raises InputError for a name that is not `known`, or not for a file."""
    content = read_json(path, "give the name of a settings file to --config")
    if not isinstance(content, dict):
        raise InputError(f'{path}: should be a JSON object of settings, such as {{"seed": 1}}')
    named = [name for name in flatten(content) if not name.startswith("task.heads.")]  # change_heads looks at those
    check_names(dict.fromkeys(named, ""), known, f"{path}: ")
    others = {*known, "help", "print_config"}
    strange = [key for key in content if key in others and key.partition(".")[0] not in OF_A_FILE]
    if strange:
        raise InputError(f"{path}: {strange[0]} is no setting: give it on the command line")
    refuse_hosts(path, content)
    for key in (key for key in GROUPS if not isinstance(content.get(key, {}), dict)):
        raise InputError(f"{path}: {key}: should be an object of settings")
    return content


# Not `config`, for which jsonargparse would read one more file past all checks here, nor a script's own words.
OF_A_FILE = {field.name for field in dataclasses.fields(Config)}
ON_THE_COMMAND_LINE = ("app.host", "app.port", "app.root_url")  # no file may open a port to the network


def refuse_hosts(path, content):
    """Raise InputError where a file names a host or port other than the default: files come from anywhere."""
    default = flatten(as_dict(Config()))
    for key, value in flatten(content).items():
        if key in ON_THE_COMMAND_LINE and value != default[key]:
            raise InputError(f"{path}: {key} is {json.dumps(value)}: hosts and ports are given on the command line "
                             f"alone: --{key} {value}")  # fmt: skip


def refuse_what_a_run_may_not_name(path, content, typed):
    """Raise InputError where a run's own args.json names plugins, which are programs, or a URL that was never fetched
    here: a run may be a stranger's. typed: names on the command line, which come before it."""
    if not any((Path(path).parent / name).is_file() for name in ("folds.csv", "data.json")):
        return
    crops = flatten(content).get("data.crops")
    if "data.crops" not in typed and never_fetched(crops):
        raise InputError(f"{path}: data.crops is {shown(crops)}: nothing is fetched because a run names it: give "
                         "--data.crops on the command line")  # fmt: skip
    if "plugins" not in typed and content.get("plugins"):
        raise InputError(f"{path}: plugins is {json.dumps(content['plugins'])}: no program is run because a run names "
                         "it: give --plugins on the command line, [] for none")  # fmt: skip


def words_of_help(argv):
    """The words right after --help: what to explain in full."""
    after = argv[min(argv.index(word) for word in ("-h", "--help") if word in argv) + 1 :]
    return list(itertools.takewhile(lambda word: not word.startswith("-"), after))


def names_and_values(words):
    """{name: value} of the words --NAME VALUE and --NAME=VALUE; "" for a value that isn't there."""
    found = {}
    for word, after in zip(words, [*words[1:], "--"], strict=False):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name.removesuffix("+")] = value if equals or after.startswith("--") else after
    return found


def split_configs(argv):
    """The files of all --config, and the other words."""
    files, rest, words = [], [], iter(argv)
    for word in words:
        if word == "--config":
            files.append(at_home(next(words, "")))
        elif word.startswith("--config="):
            files.append(at_home(word.removeprefix("--config=")))
        else:
            rest.append(word)
    return files, rest


def with_true(argv):
    """The words of a command line, with `true` after a yes-or-no setting that stands alone: --inference.flip."""
    words = []
    for word, after in zip(argv, [*argv[1:], "--"], strict=False):
        words.append(word)
        if after.startswith("--") and word.removeprefix("--") in SWITCHES:
            words.append("true")
    return words


def tidy(message: str) -> str:
    """jsonargparse's message, in one line, without the names of Python's types."""
    line = " ".join(message.replace("Parser key ", "").replace("typing.", "").split())
    line = re.sub(r"Problem with given class_path '\S+': ", "", line)
    return types_in_words(line).replace("Literal", "one of ")


def stop(number, frame):
    """Signal handler: raise Stopped, once; a SIGTERM that comes while the process already ends changes nothing."""
    if in_destructor(frame) and hasattr(signal, "setitimer"):  # Python drops what is raised there: a moment later
        signal.signal(signal.SIGALRM, lambda _, later: stop(number, later))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped(number)


def in_destructor(frame):
    """Is some object's __del__ among the functions that run?"""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def prepare_process():
    """Prepare this process for a script's main(): signals, threads, memory, and what is written to the terminal.

    A signal may come from its first line on, so it is called where a stop is understood.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    # OpenMP's threads spin for milliseconds before they sleep; beside another busy process, as on a laptop, that made
    # a training step 1.6 times as long (at ten times this count 2.3 times; alone it gained 0-8 %). torch reads this at
    # its import, which comes later.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    if quota() < math.inf:  # OpenMP counts the machine's cores, and its threads would wait for one another
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    keep_memory()
    if not is_main_process():
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open as long as the process is)
    if sys.stdout and sys.stderr:  # a process may have neither
        sys.stdout, sys.stderr = Escaping(sys.stdout), Escaping(sys.stderr, ("\r", "\n", "\x1b"))


def run_main(main: Callable[[], None]) -> None:
    """Run a script's main(): an InputError ends as one line on stderr and exit 2, Ctrl-C as exit 130, SIGTERM as 143.

    What the system refuses (memory, open files, processes, room on the disk) is one line too. A bug is not caught: it
    keeps its traceback.
    """
    try:
        prepare_process()
        main()
    except InputError as error:
        who = "" if is_main_process() else f"process {os.environ['RANK']}: "
        line = " ".join(str(error).split())
        line = re.sub(r"\S{500,}", lambda word: f"{word[0][:100]}...{word[0][-50:]}", line)
        print(f"{who}error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        if int(os.environ.get("RANK", 0)) < 2:  # of many processes rank 0, and rank 1 in case rank 0 was killed
            print("stopped; the same command goes on where it was", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", signal.SIGINT))
    except BrokenPipeError:  # `| head` closed the pipe: not our business, and not worth a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # torch.save hides it behind an error of its own
            print("stopped; the same command goes on where it was", file=sys.stderr)
            sys.exit(128 + getattr(error.__context__, "number", signal.SIGINT))
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            print(f"error: {str(error.filename)[:100]}...: is longer than a file's name can be", file=sys.stderr)
            sys.exit(2)
        refused = limit_of(error)
        if refused is None:
            raise
        if int(os.environ.get("RANK", 0)) < 2:
            print(f"error: {refused}; the same command goes on where it was", file=sys.stderr)
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one that comes while Python ends would print a traceback


LIMITS = {
    errno.EMFILE: "too many open files: raise the limit (ulimit -n 1024), or take fewer --data.workers",
    errno.ENFILE: "the system has too many open files: end other programs",
    errno.EAGAIN: "no more processes or threads may be started: raise the limit (ulimit -u), or take fewer workers "
    "(--data.workers 0, --crop.workers 1, OMP_NUM_THREADS=1)",
    errno.ENOMEM: "out of memory: end other programs, raise the limit (ulimit -v), or take fewer --data.workers, a "
    "smaller --train.batch_size or --data.memory_gb 0",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
}


# of torch.distributed's errors: a process that this one exchanges gradients with is gone
LOST_PROCESS = re.compile(r"gloo/transport|Connection (closed|reset) by peer|NCCL (error|communicator was aborted)")


def limit_of(error):
    """What the system refused, as a sentence, if that is what an exception (or its cause) says; None for a bug.

    Libraries wrap such refusals in exceptions of their own, whose text is then all that is left.
    """
    while error is not None:
        words = str(error)
        if isinstance(error, OSError) and error.errno in LIMITS:
            return LIMITS[error.errno]
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in words or "failed to map segment" in words:
            return LIMITS[errno.ENOMEM]
        if "can't start new thread" in words or "Resource temporarily unavailable" in words:
            return LIMITS[errno.EAGAIN]
        if "Too many open files" in words:
            return LIMITS[errno.EMFILE]
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and LOST_PROCESS.search(words):
            return "another process of this command was killed"
        error = error.__cause__ or error.__context__
    return None


class Escaping:
    """A text stream whose text is `visible`; what its encoding can't show is escaped too, instead of an error.

    Text that begins with one of `own` passes as it is: a progress bar's moves. No line of ours does.
    """

    def __init__(self, stream, own: tuple[str, ...] = ()):
        self.stream, self.own = stream, own
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        return self.stream.write(text if text.startswith(self.own) else visible(text))

    def __getattr__(self, name):
        return getattr(self.stream, name)
