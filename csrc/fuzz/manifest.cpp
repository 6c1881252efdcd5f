// The manifest, and the configuration of a model.
#include "package/package.h"

#include "targets.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace syncflow;
    fuzz::refuses_with_a_sentence([&] { static_cast<void>(engine::parse_manifest(fuzz::text(data, size))); });
    fuzz::refuses_with_a_sentence([&] { static_cast<void>(engine::parse_model_config(fuzz::text(data, size))); });
    return 0;
}
