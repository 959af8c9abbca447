"""What works on this machine, what is missing for each target, and the command that brings it."""

from dspark_compiler.doctor.findings import Finding, Status
from dspark_compiler.doctor.machine import machine_findings
from dspark_compiler.doctor.packages import BASE, COMPILE, package_findings
from dspark_compiler.doctor.targets import (
    cpu_findings,
    cuda_findings,
    onnxruntime_findings,
    rocm_findings,
    vulkan_findings,
)

__all__ = ["Finding", "Status", "can_run", "examine"]


def examine() -> list[Finding]:
    """All findings, section by section. Needs neither torch nor tvm."""
    return [
        *machine_findings(),
        *package_findings(BASE),
        *package_findings(COMPILE),
        *cpu_findings(),
        *cuda_findings(),
        *rocm_findings(),
        *vulkan_findings(),
        *onnxruntime_findings(),
    ]


def can_run(findings: list[Finding]) -> bool:
    """Whether this installation can run artifacts."""
    return not any(finding.section == BASE and finding.status is Status.MISSING for finding in findings)
