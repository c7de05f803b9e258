#!/usr/bin/env bash
# tensorboard 2.21.0: EventAccumulator with the path of one event file reads it only if `tfevents` is in the file's name. A copy of
# the same bytes as run.log has no scalars and no tags, and no error or exception says that it was not opened as a file.
#
# Expected: a path that is a file is read, or refused. (Of a folder, that only such names count is to be guessed.)
# A writer of event files has to keep the name, and a script that renames them loses every curve.
source "$(dirname "$0")/findings.sh"
python tensorboard==2.21.0 setuptools==80.9.0 <<'PY'
import pathlib, shutil, sys
from importlib.metadata import version
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

writer = EventFileWriter("written")
for step in range(6):
    writer.add_event(Event(wall_time=step, step=step, summary=Summary(value=[Summary.Value(tag="loss", simple_value=0.1)])))
writer.close()
file = next(pathlib.Path("written").iterdir())
seen = {}
for name in [file.name, "x.tfevents", "run.log"]:
    pathlib.Path("copies").mkdir(exist_ok=True)
    shutil.copy(file, f"copies/{name}")
    events = EventAccumulator(f"copies/{name}")
    events.Reload()
    seen[name] = len(events.Scalars("loss")) if "loss" in events.Tags()["scalars"] else 0

print(f"tensorboard {version('tensorboard')}")
for name, count in seen.items():
    print(f"{name}: {count} values of loss")
sys.exit(list(seen.values()) != [6, 6, 0])
PY
