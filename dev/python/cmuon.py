"""libcmuon from Python: Compositional Muon, LoRA-Muon and Muon on NumPy arrays or CPU torch tensors.

    import cmuon
    cmuon.cm_qk(wq, wk, gq, gk, mq, mk, lr=0.02, n_heads=12, isotropic=True)

Weights and momenta are updated in place, gradients are read. All are float32 and contiguous, in
nn.Linear orientation [out, in]; head_dim and the number of key heads follow from the shapes.
Options are those of docs/libcmuon.md. An error raises CmuonError (or TypeError, ValueError for a
buffer that is not such an array) and leaves every buffer as it was.

The module searches for the library at $CMUON_LIBRARY, in the root of this repository (make
libcmuon.so), and in the library folders of the system.
"""

import ctypes
import ctypes.util
import os

_ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
_INT, _FLOAT, _PTR = ctypes.c_int, ctypes.c_float, ctypes.c_void_p


class CmuonError(RuntimeError):
    """A call that libcmuon refused; `code` is the number that cmuon.h explains."""

    def __init__(self, code, what):
        super().__init__(f"{what}: {_library().cm_strerror(code).decode()}")
        self.code = code


_loaded = None


def _library():
    global _loaded
    if _loaded is None:
        built = os.path.join(_ROOT, "libcmuon.so")
        path = os.environ.get("CMUON_LIBRARY") or (built if os.path.exists(built) else
                                                   ctypes.util.find_library("cmuon"))
        if not path:
            raise ImportError("no libcmuon.so: run make libcmuon.so, or name it in $CMUON_LIBRARY")
        lib = ctypes.CDLL(path)
        lib.cm_strerror.restype, lib.cm_strerror.argtypes = ctypes.c_char_p, [_INT]
        lib.cm_options_new.restype, lib.cm_options_new.argtypes = _PTR, []
        lib.cm_options_set.argtypes = [_PTR, ctypes.c_char_p, ctypes.c_char_p]
        lib.cm_options_free.restype, lib.cm_options_free.argtypes = None, [_PTR]
        lib.cm_qk.argtypes = lib.cm_ov.argtypes = [_PTR] * 6 + [_INT] * 4 + [_FLOAT, _PTR]
        lib.cm_lora.argtypes = [_PTR] * 6 + [_INT] * 3 + [_FLOAT, _PTR]
        lib.cm_muon.argtypes = [_PTR] * 3 + [_INT] * 2 + [_FLOAT, _PTR]
        lib.cm_msign.argtypes = [_PTR, _INT, _INT, _PTR]
        lib.cm_inv_sqrt.argtypes = [_PTR, _INT, _FLOAT, _PTR]
        _loaded = lib
    return _loaded


def _text(key, value):
    if isinstance(value, bool):
        return ("0", "copy" if key == "momentum_reproject" else "1")[value]
    return repr(value) if isinstance(value, float) else str(value)


class _Options:
    """A cm_options that exists during a `with` block."""

    def __init__(self, options):
        self.options = options

    def __enter__(self):
        self.pointer = _library().cm_options_new()
        if not self.pointer:
            raise MemoryError("cm_options_new")
        for key, value in self.options.items():
            text = _text(key, value)
            code = _library().cm_options_set(self.pointer, key.encode(), text.encode())
            if code:
                _library().cm_options_free(self.pointer)
                raise CmuonError(code, f"{key}={text}")
        return self.pointer

    def __exit__(self, *_):
        _library().cm_options_free(self.pointer)


def _address(name, x, shape=None, written=True):
    """The address of the numbers of an array or tensor. Raises if their layout is not the library's."""
    if hasattr(x, "data_ptr"):
        ok = str(x.dtype) == "torch.float32" and x.device.type == "cpu" and x.is_contiguous()
        address = x.data_ptr()
    elif hasattr(x, "ctypes"):
        ok = str(x.dtype) == "float32" and x.flags.c_contiguous
        ok = ok and (x.flags.writeable or not written)
        address = x.ctypes.data
    else:
        raise TypeError(f"{name} is {type(x).__name__}, not a NumPy array or a torch tensor")
    if not ok or len(x.shape) != 2:
        raise TypeError(f"{name} must be a contiguous float32 matrix in CPU memory"
                        + (" that may be written" if written else ""))
    if shape is not None and tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} is {tuple(x.shape)}, where {tuple(shape)} is expected")
    return address


def _call(name, *arguments, options):
    with _Options(options) as pointer:
        code = getattr(_library(), name)(*arguments, pointer)
    if code:
        raise CmuonError(code, name)


def _pair(call, names, w, g, m, per_query, shared, lr, n_heads, options):
    """per_query, shared: the shapes (heads * head_dim, d_model) of the two projections."""
    head_dim, rest = divmod(per_query[0], n_heads) if n_heads > 0 else (0, 1)
    if rest or not head_dim or shared[0] % head_dim or shared[1] != per_query[1]:
        raise ValueError(f"{n_heads} heads do not fit w{names[0]} {tuple(w[0].shape)} and "
                         f"w{names[1]} {tuple(w[1].shape)}")
    addresses = [_address(kind + n, x, like.shape, kind != "g")
                 for kind, xs in (("w", w), ("g", g), ("m", m)) for n, x, like in zip(names, xs, w)]
    _call(call, *addresses, shared[1], n_heads, shared[0] // head_dim, head_dim, lr,
          options=options)


def cm_qk(wq, wk, gq, gk, mq, mk, lr, n_heads, **options):
    """One step of W_Q (n_heads * head_dim, d_model) and W_K (n_kv_heads * head_dim, d_model)."""
    _pair("cm_qk", "qk", (wq, wk), (gq, gk), (mq, mk), wq.shape, wk.shape, lr, n_heads, options)


def cm_ov(wv, wo, gv, go, mv, mo, lr, n_heads, **options):
    """One step of W_V (n_kv_heads * head_dim, d_model) and W_O (d_model, n_heads * head_dim)."""
    _pair("cm_ov", "vo", (wv, wo), (gv, go), (mv, mo), wo.shape[::-1], wv.shape, lr, n_heads,
          options)


def lora(a, b, ga, gb, ma, mb, lr, **options):
    """One step of LoRA-Muon on the factors of W = W_pre + s A B^T: a (m, r) is A, b (r, n) is B^T.

    With PEFT a is lora_B.weight and b is lora_A.weight. Give s as lora_scale=s.
    """
    addresses = [_address("a", a), _address("b", b)]
    (m, rank), n = a.shape, b.shape[1]
    if b.shape[0] != rank or rank > min(m, n):
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} are not (m, r) and (r, n) with a "
                         "rank r of at most min(m, n); of PEFT's names a is lora_B.weight and b is "
                         "lora_A.weight")
    addresses += [_address("ga", ga, a.shape, False), _address("gb", gb, b.shape, False),
                  _address("ma", ma, a.shape), _address("mb", mb, b.shape)]
    _call("cm_lora", *addresses, m, n, rank, lr, options=options)


def muon(w, g, m, lr, **options):
    """One step of Muon on a matrix."""
    addresses = [_address("w", w), _address("g", g, w.shape, False), _address("m", m, w.shape)]
    _call("cm_muon", *addresses, *w.shape, lr, options=options)


def msign(x, **options):
    """x <- U V^T of its thin SVD, in place."""
    _call("cm_msign", _address("x", x), *x.shape, options=options)


def inv_sqrt(gram, damping=0.0, **options):
    """gram <- (gram + damping I)^(-1/2), in place."""
    _call("cm_inv_sqrt", _address("gram", gram, (len(gram), len(gram))), len(gram), damping,
          options=options)
