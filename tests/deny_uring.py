"""Runs a command as under a container profile that forbids io_uring: deny_uring.py PROGRAM ARG...

A seccomp filter answers io_uring_setup (425 on every architecture) with EPERM.
"""
import ctypes
import errno
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
LOAD_WORD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
IO_URING_SETUP = 425
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM

program = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in [
        (LOAD_WORD, 0, 0, 0),
        (JUMP_EQUAL, 0, 1, IO_URING_SETUP),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
)


class Filter(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


libc = ctypes.CDLL(None, use_errno=True)
filter_ = Filter(len(program) // 8, program)
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
    PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(filter_), 0, 0
):
    sys.exit("deny_uring: " + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
