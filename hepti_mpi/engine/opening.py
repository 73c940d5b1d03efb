"""How sessions of ONNX Runtime are opened: what all of a process have in common. Knows graphs and files; knows no operation, store or
rank."""

from pathlib import Path

import onnx
import onnxruntime
from onnx import helper

from hepti_mpi.engine import pages
from hepti_mpi.engine.cores import core_each
from hepti_mpi.engine.graph import MICROSOFT
from hepti_mpi.engine.pool import POOL

onnxruntime.disable_telemetry_events()  # its wheels from 1.32 on have an address on the internet to tell what is run and on what

OPSETS = {"Attention": 23, "block_size": 21}  # of nodes, or attributes, that are younger than the others
PROVIDERS = ["CPUExecutionProvider"]


def _begin() -> None:
    """Set up what all sessions share: without one allocator each of some fifty keeps an arena for intermediate values."""
    onnxruntime.set_default_logger_severity(4)
    pages.one_heap()
    memory = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT)
    arena = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1})  # as much as is asked for, not a power of two
    with core_each(POOL.threads or 1):  # the threads of a shared pool start here, not with a session
        if POOL.shared and POOL.threads is not None:
            onnxruntime.set_global_thread_pool_sizes(POOL.threads, 1)
        onnxruntime.create_and_register_allocator(memory, arena)
    POOL.in_use = True


def session(graph: onnx.GraphProto, folder: Path, mode: str, threads: int) -> onnxruntime.InferenceSession:
    """Return the session of a graph whose weights are in `folder`; `mode`: whether they are "packed" in memory or read from the file as
    they are ("mapped")."""
    common = options(threads, folder)
    common.add_session_config_entry("session.disable_prepacking", "1" if mode == "mapped" else "0")
    return loaded(model_of(graph).SerializeToString(), common, threads)


def loaded(model: str | bytes, common: onnxruntime.SessionOptions, threads: int) -> onnxruntime.InferenceSession:
    """Return the session of a model or of the file that it is in."""
    with core_each(threads):
        return onnxruntime.InferenceSession(model, common, providers=PROVIDERS)


def model_of(graph: onnx.GraphProto) -> onnx.ModelProto:
    """Return the model of a graph, in the oldest opset that has all of its nodes."""
    used = {name for node in graph.node if not node.domain for name in (node.op_type, *(one.name for one in node.attribute))}
    opsets = [helper.make_opsetid("", max([18, *(OPSETS.get(name, 0) for name in used)])), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def options(threads: int, folder: Path | None = None) -> onnxruntime.SessionOptions:
    """Return what all sessions have in common; `folder`: of the files with weights, where it is not the model's."""
    if POOL.threads is not None and not POOL.in_use:
        _begin()
    common = onnxruntime.SessionOptions()
    common.use_per_session_threads = not POOL.shared
    if common.use_per_session_threads:
        common.intra_op_num_threads = threads
        common.add_session_config_entry("session.force_spinning_stop", "1")  # between two runs other sessions want the cores
    common.enable_mem_pattern = False  # it keeps a block per shape that was seen
    common.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    common.add_session_config_entry("session.use_env_allocators", "1")
    common.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    if folder is not None:
        common.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    return common
