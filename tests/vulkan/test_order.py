"""Where barriers stand: a program that asks vulkan_runtime/order.cc, since a missing one may go unnoticed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dspark_compiler.vulkan_runtime import library

_ASKS = """
#include <cstdio>
#include <vector>
#include "order.h"
using namespace dspark::vulkan;
void Command(Order& order, std::vector<Use> uses) {
  const bool depends = order.Depends(uses.data(), uses.size());
  if (depends) order.Clear();
  order.Note(uses.data(), uses.size());
  std::putchar(depends ? '|' : '.');
}
constexpr Access R = Access::kRead, W = Access::kWrite, X = Access::kExchange, A = Access::kAwait,
                 P = Access::kPublish, U = Access::kUnset;
int main() {
  SEQUENCES
}
"""
# Commands as {piece, address, access}, and where barriers stand without and with launches that overlap.
_SEQUENCES = {
    "what is read was written": ("{{1,1,W}}; {{1,1,R},{2,2,W}}; {{2,2,R}}; {{2,2,R}}", ".||. .||."),
    "what is written was read": ("{{1,1,R}}; {{1,1,W}}; {{1,1,W}}", ".|| .||"),
    "a chain that is awaited": ("{{1,1,U}}; {{1,2,P}}; {{1,2,A},{1,3,P}}; {{1,3,A},{1,4,P}}", ".||| .|.."),
    "who does not await waits": ("{{1,1,U}}; {{1,2,P}}; {{1,2,R}}; {{1,2,A}}", ".||. .||."),
    "nothing was unset": ("{{1,2,P}}; {{1,2,A}}", ".| .|"),
    "nobody publishes": ("{{1,1,U}}; {{1,2,A}}; {{1,2,W}}", ".|| .||"),
    "published twice": ("{{1,1,U}}; {{1,2,P}}; {{1,2,P}}; {{1,2,A}}", ".||| .|||"),
    "unset again": ("{{1,1,U}}; {{1,2,P}}; {{1,2,A}}; {{1,1,U}}; {{1,2,P}}", ".|||| .|.||"),
    "exchanged at two places": ("{{1,1,U}}; {{1,2,X}}; {{1,3,X}}; {{1,3,X}}", ".||| .|.|"),
    "exchanged where nothing was unset": ("{{1,2,X}}; {{1,3,X}}", ".| .|"),
    "memory given back": ("{{1,1,U}}; {{1,2,P}}; RELEASE; {{1,2,A}}", ".|| .||"),
}


_SEQUENCE = "for (bool overlaps : {false, true}) { Order order(overlaps); BODY std::putchar(' '); } std::puts(\"\");"


def _calls(steps: str) -> str:
    calls = [step.strip() for step in steps.split(";")]
    body = " ".join("order.Release(1);" if step == "RELEASE" else f"Command(order, {step});" for step in calls)
    return _SEQUENCE.replace("BODY", body)


def test_barriers_stand_where_something_depends(tmp_path: Path) -> None:
    if missing := library.missing():
        pytest.skip(f"needs {' and '.join(missing)}")
    compiler = shutil.which("c++") or shutil.which("g++") or "clang++"
    text = _ASKS.replace("SEQUENCES", "\n  ".join(_calls(steps) for steps, _ in _SEQUENCES.values()))
    (tmp_path / "ask.cc").write_text(text)
    header = library.header
    assert header is not None
    command = [compiler, "-std=c++17", f"-I{library.folder}", f"-I{header.folder()}", str(tmp_path / "ask.cc")]
    subprocess.run([*command, str(library.folder / "order.cc"), "-o", str(tmp_path / "ask")], check=True)
    done = subprocess.run([str(tmp_path / "ask")], capture_output=True, text=True, check=True)
    found = dict(zip(_SEQUENCES, done.stdout.splitlines(), strict=True))
    assert {name: line.split() for name, line in found.items()} == {
        name: barriers.split() for name, (_, barriers) in _SEQUENCES.items()
    }
