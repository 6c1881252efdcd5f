// Tensors of PyTorch as typed, strided views. Reading a tensor's attributes costs less than a conversion to a NumPy array.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

namespace syncflow::python {

constexpr std::size_t MAX_DIMS = 6;

// A tensor of float32 (T is float or const float) or int64 (T is const std::int64_t); `data` is null for None and for an
// empty tensor. Callers have checked that it is on the CPU.
template <typename T>
struct TensorView {
    T* data = nullptr;
    bool defined = false;  // false for None
    std::size_t dims = 0;
    std::array<std::int64_t, MAX_DIMS> sizes = {}, strides = {};
};

using Shape = std::initializer_list<std::int64_t>;

template <typename Sizes>
std::string shape_text(const Sizes& sizes, std::size_t dims) {
    std::string text = "(";
    for (std::size_t i = 0; i < dims; ++i) {
        if (i > 0) text += ", ";
        text += std::to_string(*(std::begin(sizes) + i));
    }
    text += ')';
    return text;
}

// Raises ValueError unless the tensor has this shape; `any` leaves an axis free.
constexpr std::int64_t any = -1;

template <typename T>
void require_shape(const TensorView<T>& tensor, const char* name, Shape shape) {
    bool equal = tensor.defined && tensor.dims == shape.size();
    for (std::size_t i = 0; equal && i < tensor.dims; ++i) {
        const std::int64_t size = *(shape.begin() + i);
        equal = size == any || size == tensor.sizes[i];
    }
    if (equal) return;
    const std::string found = tensor.defined ? "has the shape " + shape_text(tensor.sizes, tensor.dims) : "is missing";
    throw pybind11::value_error(std::string(name) + " " + found + "; expected " + shape_text(shape, shape.size()) +
                                ", where -1 is any size");
}

// Raises ValueError unless the last axes from `first` on lie dense in memory. Strides of an empty tensor mean nothing.
template <typename T>
void require_contiguous(const TensorView<T>& tensor, const char* name, std::size_t first = 0) {
    for (std::size_t i = 0; i < tensor.dims; ++i) {
        if (tensor.sizes[i] == 0) return;
    }
    std::int64_t expected = 1;
    for (std::size_t i = tensor.dims; i > first; --i) {
        if (tensor.sizes[i - 1] != 1 && tensor.strides[i - 1] != expected) {
            throw pybind11::value_error(std::string(name) + " must be contiguous");
        }
        expected *= tensor.sizes[i - 1];
    }
}

// A contiguous tensor of this shape.
template <typename T>
void require(const TensorView<T>& tensor, const char* name, Shape shape) {
    require_shape(tensor, name, shape);
    require_contiguous(tensor, name);
}

// The same for a tensor that may be None.
template <typename T>
void require_if_defined(const TensorView<T>& tensor, const char* name, Shape shape) {
    if (tensor.defined) require(tensor, name, shape);
}

// Attributes of torch.Tensor, and the types of its elements. Looked up once; never freed.
struct TorchNames {
    PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
    PyObject* shape = PyUnicode_InternFromString("shape");
    PyObject* stride = PyUnicode_InternFromString("stride");
    PyObject* dtype = PyUnicode_InternFromString("dtype");
    PyObject* float32 = pybind11::object(pybind11::module_::import("torch").attr("float32")).release().ptr();
    PyObject* int64 = pybind11::object(pybind11::module_::import("torch").attr("int64")).release().ptr();
};

const TorchNames& torch_names();

}  // namespace syncflow::python

namespace PYBIND11_NAMESPACE {
namespace detail {

template <typename T>
struct type_caster<syncflow::python::TensorView<T>> {
    PYBIND11_TYPE_CASTER(syncflow::python::TensorView<T>, const_name("torch.Tensor | None"));

    bool load(handle source, bool) {
        if (source.is_none()) return true;
        const syncflow::python::TorchNames& names = syncflow::python::torch_names();
        const auto attribute = [&](PyObject* key) { return reinterpret_steal<object>(PyObject_GetAttr(source.ptr(), key)); };
        const auto call = [&](PyObject* key) { return reinterpret_steal<object>(PyObject_CallMethodNoArgs(source.ptr(), key)); };
        const object dtype = attribute(names.dtype), shape = attribute(names.shape);
        const object strides = call(names.stride), address = call(names.data_ptr);
        if (!dtype || !shape || !strides || !address) {
            PyErr_Clear();
            return false;
        }
        constexpr bool floats = std::is_same_v<std::remove_const_t<T>, float>;
        if (dtype.ptr() != (floats ? names.float32 : names.int64)) return false;
        if (!PyTuple_Check(shape.ptr()) || !PyTuple_Check(strides.ptr())) return false;
        value.dims = static_cast<std::size_t>(PyTuple_GET_SIZE(shape.ptr()));
        if (value.dims > syncflow::python::MAX_DIMS) return false;
        for (std::size_t i = 0; i < value.dims; ++i) {
            value.sizes[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), static_cast<Py_ssize_t>(i)));
            value.strides[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides.ptr(), static_cast<Py_ssize_t>(i)));
        }
        value.data = static_cast<T*>(PyLong_AsVoidPtr(address.ptr()));
        value.defined = true;
        if (PyErr_Occurred() == nullptr) return true;
        PyErr_Clear();
        return false;
    }
};

}  // namespace detail
}  // namespace PYBIND11_NAMESPACE
