"""Qualcomm's NPU (HTP): its emulator and its offline compiler, by ``onnxruntime-qnn``.

The provider crashes on some graphs, so each graph is opened, run or compiled in a process of its
own: a crash is one line.
"""
