"""Every error a user can cause or meet, one class a remedy."""


class DSparkError(Exception):
    """One clear line: what is wrong, where, and what to do. The command line prints it and exits 2."""


class InputError(DSparkError):
    """A model folder, file, option or prompt that cannot be used as given."""


class UnsupportedModelError(DSparkError):
    """A model that cannot be captured; names the module or operator that stopped it."""


class PassError(DSparkError):
    """A rewrite could not go on, or left an invalid program; names pass, entry point and node."""


class LoweringError(DSparkError):
    """An operator has no lowering, or TVM refused the module; names entry point and node."""


class BackendUnavailableError(DSparkError):
    """The target cannot be compiled for or run here; names what is missing and how to get it."""


class ArtifactError(DSparkError):
    """An artifact that is truncated, edited, foreign, for another machine, or of a newer format."""


class DeviceError(DSparkError):
    """A GPU, its driver or its memory failed a running program; names the call and what the driver says of it."""


class CheckFailedError(DSparkError):
    """The compiled model disagrees with eager. The command line exits 1."""
