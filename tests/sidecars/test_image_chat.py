"""Templates of models with images render what Meta's own code feeds to the models."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from jinja2 import TemplateError
from PIL import Image
from transformers import PreTrainedTokenizerFast

from tests.sidecars.conftest import packaged_file
from tests.sidecars.test_chat import ANSWER, CONVERSATIONS, SYSTEM, TOOL, USER, render, render_ids
from tests.sidecars.written_tokenizers import load

IMAGE = {"type": "image"}


@pytest.fixture(scope="module")
def vision(vision_folder: Path) -> PreTrainedTokenizerFast:
    return load(vision_folder)


@pytest.fixture(scope="module")
def llama_4(llama_4_folder: Path) -> PreTrainedTokenizerFast:
    return load(llama_4_folder)


@pytest.fixture(scope="module")
def llama_4_format():
    """Give Meta's code for Llama 4's prompts, which asks for torchvision though texts need none of it."""
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[names[1]])["functional"] = sys.modules[names[2]]
        from llama_models.llama4.chat_format import ChatFormat
        from llama_models.llama4.tokenizer import Tokenizer
    return ChatFormat(Tokenizer.get_instance())


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


PARTS = [
    [{"role": "user", "content": [IMAGE, text("What is\n this? ")]}],
    [{"role": "user", "content": [text("Before "), IMAGE, text(" and after")]}, ANSWER, USER],
    [SYSTEM, {"role": "user", "content": [IMAGE, IMAGE, text("Which?")]}],
    [
        {"role": "system", "content": [text("Be "), text("brief.")]},
        {"role": "user", "content": [text("Why?")]},
    ],
]


def make_raw(message: dict[str, object]):
    """Make the same message for Meta's code, which leaves it to its callers to trim contents."""
    from llama_models.datatypes import RawMediaItem, RawMessage, RawTextItem

    content = message["content"]
    if isinstance(content, str):
        return RawMessage(role=message["role"], content=content.strip())
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    words = [part.get("text", "") for part in content]
    words = [*words[:-1], words[-1].rstrip()]
    items = [
        RawMediaItem(data=picture.getvalue()) if part == IMAGE else RawTextItem(text=each)
        for part, each in zip(content, words, strict=True)
    ]
    return RawMessage(role=message["role"], content=items)


@pytest.mark.parametrize("messages", [*CONVERSATIONS, *PARTS[:3]])
def test_llama_3_2_visions_prompts_have_the_ids_of_metas_code(vision, messages):
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer

    raw = [make_raw(message) for message in messages]
    assert (
        render_ids(vision, messages) == ChatFormat(Tokenizer.get_instance()).encode_dialog_prompt(raw).tokens
    )


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_llama_4s_prompts_have_the_ids_of_metas_code(llama_4, llama_4_format, messages):
    raw = [make_raw(message) for message in messages]
    assert render_ids(llama_4, messages) == llama_4_format.encode_dialog_prompt(raw).tokens


def trim(message: dict[str, object]) -> dict[str, object]:
    content = message["content"]
    if isinstance(content, str):
        return message | {"content": content.strip()}
    if message["role"] == "system":
        return message | {"content": "".join(part["text"] for part in content)}
    return message | {"content": [*content[:-1], content[-1] | {"text": content[-1]["text"].rstrip()}]}


@pytest.mark.parametrize("messages", [*CONVERSATIONS, *PARTS])
def test_llama_4s_prompts_are_those_of_transformers_processor(llama_4, messages):
    from transformers.models.llama4.processing_llama4 import chat_template

    # That one trims system messages only, of which it takes the first part.
    plain = [trim(message) for message in messages]
    expected = llama_4.apply_chat_template(
        plain, chat_template=chat_template, tokenize=False, add_generation_prompt=True
    )
    assert render(llama_4, messages, add_generation_prompt=True) == expected


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_llama_4s_tools_are_described_as_transformers_processor_does(llama_4, system):
    from transformers.models.llama4.processing_llama4 import chat_template

    messages = [*system, {"role": "user", "content": "Which songs?"}]
    expected = llama_4.apply_chat_template(
        messages, tools=[TOOL], chat_template=chat_template, tokenize=False, add_generation_prompt=True
    )
    assert render(llama_4, messages, tools=[TOOL], add_generation_prompt=True) == expected


@pytest.mark.parametrize("parts", [False, True])
def test_metas_code_reads_llama_4s_calls_back(llama_4, llama_4_format, parts):
    from llama_models.datatypes import StopReason

    arguments = {"n": 10, "genre": "all", "note": 'ä "b"'}
    call = {
        "function": {"name": "trending_songs", "arguments": json.dumps(arguments) if parts else arguments}
    }
    rendered = render(llama_4, [USER, {"role": "assistant", "tool_calls": [call]}])
    answer = rendered.rpartition("<|header_start|>")[2]
    assert answer.startswith("assistant<|header_end|>\n\n<|python_start|>{")
    assert answer.endswith("}<|python_end|><|eom|>")
    said = answer.removeprefix("assistant<|header_end|>\n\n")
    read = llama_4_format.decode_assistant_message_from_content(said, StopReason.end_of_message)
    (found,) = read.tool_calls
    assert (found.tool_name, found.arguments) == ("trending_songs", arguments)


def test_what_a_tool_gave_llama_4_has_the_ids_of_metas_code(llama_4, llama_4_format):
    messages = [USER, {"role": "tool", "content": "7 songs"}]
    raw = [make_raw(message) for message in messages]
    assert render_ids(llama_4, messages) == llama_4_format.encode_dialog_prompt(raw).tokens


@pytest.mark.parametrize("name", ["vision", "llama_4"])
def test_what_a_tool_gave_may_be_anything(name, request):
    tokenizer = request.getfixturevalue(name)
    for content, shown in (
        ("7", "7"), ([text("7"), text("8")], "78"), ({"a": 7}, '{"a": 7}'), ([{"a": 7}], '[{"a": 7}]'), (7, "7"),
        ([], "[]"),
    ):  # fmt: skip
        rendered = render(tokenizer, [USER, {"role": "tool", "content": content}])
        assert rendered.rpartition("<|")[0].endswith(f"|>\n\n{shown}")


def published_prompt(heading: str) -> str:
    """Take the example under a heading of Meta's description of the format, as the package carries it."""
    document = packaged_file("llama_models", "llama3_2/vision_prompt_format.md").read_text()
    return document.split(f"## {heading}\n", 1)[1].split("```\n")[1]


def test_an_image_is_rendered_as_meta_describes(vision):
    messages = [{"role": "user", "content": [IMAGE, text("Describe this image in two sentences")]}]
    rendered = render(vision, messages, add_generation_prompt=True)
    assert rendered.strip() == published_prompt("User and assistant conversation with Images").strip()


def test_builtin_tools_are_rendered_as_meta_describes(vision):
    messages = [
        {"role": "system", "content": [text("You are a helpful assistant.")]},
        {"role": "user", "content": "Search the web for the latest price of 1oz gold?"},
    ]
    rendered = render(
        vision,
        messages,
        builtin_tools=["brave_search", "wolfram_alpha"],
        date_string="23 September 2024",
        add_generation_prompt=True,
    )
    expected = published_prompt("Builtin and Zero Shot Tool Calling")
    # The example ends the system message with a line end of its own.
    assert rendered.strip() == expected.replace("\n<|eot_id|>", "<|eot_id|>").strip()


def test_an_image_is_one_token(vision, llama_4):
    messages = [{"role": "user", "content": [IMAGE, text("What?")]}]
    assert render_ids(vision, messages).count(128256) == 1
    assert render_ids(llama_4, messages).count(200090) == 1


@pytest.mark.parametrize("name", ["vision", "llama_4"])
@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([USER, {"role": "critic", "content": "no"}], "message 2 has the role 'critic', expected 'system'"),
        ([{"role": "user", "content": [IMAGE, {"type": "video"}]}], "message 1: part 2 is neither a text nor an image"),
        ([{"role": "user", "content": ["What?"]}], "message 1: part 1 is neither a text nor an image"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1: part 1 is neither a text nor an image"),
        ([{"role": "user", "content": None}], "message 1: content is neither a text nor a list of parts"),
        ([{"role": "user", "content": {"type": "image"}}], "message 1: content is neither a text nor a list of"),
        ([{"role": "user"}], "message 1: content is neither a text nor a list of parts"),
        (
            [USER, {"role": "assistant", "tool_calls": [{"name": "a", "arguments": {}}] * 2}],
            "message 2 has 2 tool calls, expected one",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused(
    name: str, messages: Sequence[object], words: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(TemplateError) as raised:
        render(request.getfixturevalue(name), messages)
    assert words in str(raised.value)


@pytest.mark.parametrize("messages", [[SYSTEM], [ANSWER], [SYSTEM, ANSWER]])
def test_tools_without_a_user_who_describes_them_are_refused(llama_4, messages):
    with pytest.raises(TemplateError, match="is not from 'user'"):
        render(llama_4, messages, tools=[TOOL])
