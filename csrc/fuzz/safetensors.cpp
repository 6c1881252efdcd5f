#include "package/safetensors.h"

#include <span>

#include "targets.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace syncflow;
    fuzz::refuses_with_a_sentence([&] { static_cast<void>(engine::parse_safetensors(std::as_bytes(std::span(data, size)))); });
    return 0;
}
