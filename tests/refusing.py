"""A kernel that refuses to write: what a quota does, without a file system that has one, and without root."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import struct
import threading

CALLS = {"x86_64": (1, 18, 20, 40, 285), "aarch64": (64, 68, 66, 71, 47)}
"""Numbers of write, pwrite64, writev, sendfile and fallocate."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000  # linux/seccomp.h
_SECCOMP, _FILTER, _NO_NEW_PRIVILEGES = 22, 2, 38  # linux/prctl.h
_NUMBER, _FILE = 0, 16  # where struct seccomp_data has a call's number and its first argument


def can_refuse():
    """Whether this machine's kernel can be asked to."""
    return platform.system() == "Linux" and platform.machine() in CALLS


def refused(number, call):
    """Return what a function returns while each write into a file that it opens is answered by an error.

    Args:
        number: The error, such as errno.EDQUOT. Python, torch and safetensors get it alike.
    """
    done = []

    def work():
        gc.collect()  # a file that an earlier test left open would be closed later, and give its number to another
        gc.disable()
        fillers = refuse_writes(number)
        try:
            done.append((call(), None))
        except BaseException as error:
            done.append((None, error))
        finally:
            gc.enable()
            for each in fillers:
                os.close(each)

    thread = threading.Thread(target=work)  # the refusal ends with it
    thread.start()
    thread.join()
    ((value, error),) = done
    if error is not None:
        raise error
    return value


def refuse_writes(number):
    """Refuse this thread, for ever, to write into files that it opens from now on; return numbers of files to close."""
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fillers = [os.open(os.devnull, os.O_RDONLY)]
    while fillers[-1] <= highest:  # so that each file opened from now on has a number above those open now
        fillers.append(os.open(os.devnull, os.O_RDONLY))
    watched = CALLS[platform.machine()]
    rules = [(_LOAD, 0, 0, _NUMBER)]
    rules += [(_EQUAL, len(watched) - place, 0, call) for place, call in enumerate(watched)]
    rules += [(_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _FILE), (_AT_LEAST, 0, 1, fillers[-1])]
    rules += [(_RETURN, 0, 0, _ERROR | number), (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code)))
    kernel = ctypes.CDLL(None, use_errno=True)
    for request in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SECCOMP, _FILTER, program, 0, 0)):
        if kernel.prctl(*request):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fillers
