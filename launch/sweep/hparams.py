"""TensorBoard's HPARAMS tab: each trial a session, with its parameters and the metrics at the step that counts.

Written as protocol buffers in event files, with what TensorBoard has for that but without TensorFlow. `tensorboard
--logdir` of the sweep's folder shows the trials' own curves beside it.
"""

import contextlib
import io
import math
import os
import time

from launch.sweep.ledger import FAILED, FINISHED, RUNNING, SUBMITTED
from launch.sweep.values import literal

FOLDER = "hparams"
_FILE = "events.out.tfevents.{seconds}.sweep"  # TensorBoard goes by the word in the middle


def objective_tag(objective):
    """Returns the tag of the number by which trials are compared."""
    return f"sweep/{objective.take}_{objective.kind}_{objective.metric}"


def write_hparams(folder, runs, objective, names):
    """Writes the event files of a sweep, over those of before.

    Args:
        folder: of the sweep.
        runs: list of `Run`.
        objective: `Objective`, or None.
        names: names of all parameters.

    Raises:
        OSError: if the disk refuses.
    """
    records = {run.trial.name: _record(run, objective) for run in runs}
    tags = dict.fromkeys([objective_tag(objective)] if objective else [])
    for _, values in records.values():
        tags.update(dict.fromkeys(values))
    _write(os.path.join(folder, FOLDER), [_experiment(runs, list(tags), names)], 0)
    for run in runs:
        step, values = records[run.trial.name]
        began = run.trial.began_at or time.time()
        summaries = [_start(run, began), *_scalars(values), *_end(run, began)]
        _write(os.path.join(folder, FOLDER, run.trial.name), summaries, step)


def _record(run, objective):
    """Returns (step, {tag: number}): the objective, and what was logged with it."""
    point = objective.of(run.metrics) if objective else None
    if point is None:
        return 0, {}
    step, value = point
    logged = {
        name: dict(run.metrics.curve(objective.kind, name)).get(step) for name in run.metrics.names(objective.kind)
    }
    others = {f"{objective.kind}/{name}": number for name, number in logged.items() if number is not None}
    return step, {objective_tag(objective): value, **others}


def _experiment(runs, tags, names):
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    experiment = api_pb2.Experiment(time_created_secs=min((run.trial.began_at or 0 for run in runs), default=0))
    for name in names:
        texts = [dict(run.trial.parameters).get(name) for run in runs]
        experiment.hparam_infos.append(_hparam(name, [literal(text) for text in texts if text is not None]))
    for tag in tags:
        experiment.metric_infos.add(name=api_pb2.MetricName(tag=tag))
    return _summary(metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment))


def _hparam(name, values):
    """Returns a description of a parameter: its kind, and its values where they are texts or booleans."""
    from google.protobuf.struct_pb2 import ListValue
    from tensorboard.plugins.hparams import api_pb2

    if all(isinstance(value, bool) for value in values):
        info = api_pb2.HParamInfo(name=name, type=api_pb2.DATA_TYPE_BOOL)
    elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return api_pb2.HParamInfo(name=name, type=api_pb2.DATA_TYPE_FLOAT64)
    else:
        info = api_pb2.HParamInfo(name=name, type=api_pb2.DATA_TYPE_STRING)
        values = map(str, values)
    domain = ListValue()
    for value in dict.fromkeys(values):
        domain.values.add(**_value(value))
    info.domain_discrete.CopyFrom(domain)
    return info


def _value(value):
    """Returns the keyword of a protocol buffer's `Value` for a value."""
    if isinstance(value, bool):
        return {"bool_value": value}
    if isinstance(value, int | float) and math.isfinite(value):
        return {"number_value": value}
    return {"string_value": str(value)}


def _start(run, began):
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionStartInfo(group_name=run.trial.name, start_time_secs=began)
    for name, text in run.trial.parameters:
        for key, value in _value(literal(text)).items():
            setattr(info.hparams[name], key, value)
    return _summary(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=info))


def _end(run, began):
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    trial = run.trial
    if trial.state in (RUNNING, SUBMITTED):
        return []
    status = {FINISHED: api_pb2.STATUS_SUCCESS, FAILED: api_pb2.STATUS_FAILURE}.get(trial.state, api_pb2.STATUS_UNKNOWN)
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=began + trial.seconds)
    return [_summary(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))]


def _scalars(values):
    from tensorboard.compat.proto import summary_pb2

    return [
        summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=float(value))])
        for tag, value in values.items()
    ]


def _summary(tag, content):
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import metadata

    value = summary_pb2.Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content))
    value.tensor.CopyFrom(metadata.NULL_TENSOR)
    return summary_pb2.Summary(value=[value])


def _write(folder, summaries, step):
    """Writes an event file that takes the place of the one before."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    now = time.time()
    content = io.BytesIO()
    writer = RecordWriter(content)
    writer.write(event_pb2.Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for summary in summaries:
        writer.write(event_pb2.Event(wall_time=now, step=step, summary=summary).SerializeToString())
    os.makedirs(folder, exist_ok=True)
    before = [name for name in os.listdir(folder) if ".tfevents." in name]
    path = os.path.join(folder, _FILE.format(seconds=int(now)))
    with open(path + ".tmp", "wb") as file:
        file.write(content.getvalue())
    os.replace(path + ".tmp", path)
    for name in before:
        if os.path.join(folder, name) != path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
