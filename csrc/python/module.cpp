// The extension module syncflow._native.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "syncflow/noise.h"

namespace py = pybind11;

#ifdef SYNCFLOW_CPU
void bind_layers(py::module_& module);
void bind_blocks(py::module_& module);
#endif

namespace {

py::array_t<float> normal(std::uint64_t seed, std::uint32_t stream, std::uint32_t substream, std::uint64_t offset, std::size_t count) {
    py::array_t<float> out(static_cast<py::ssize_t>(count));
    float* const data = out.mutable_data();
    const py::gil_scoped_release unlocked;
    syncflow::fill_normal({seed, stream, substream}, offset, data, count);
    return out;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "The native part of syncflow.";
    module.def("philox4x32", &syncflow::philox4x32, py::arg("counter"), py::arg("key"));
    module.def("normal", &normal, py::arg("seed"), py::arg("stream"), py::arg("substream"), py::arg("offset"), py::arg("count"));
#ifdef SYNCFLOW_CPU
    bind_layers(module);
    bind_blocks(module);
#endif
}
