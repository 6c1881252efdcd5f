#include "package/json.h"

#include "targets.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace syncflow;
    fuzz::refuses_with_a_sentence([&] { static_cast<void>(engine::parse_json(fuzz::text(data, size))); });
    return 0;
}
