"""Templates render what Meta's own code feeds to the models."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import sentencepiece
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from distconv.sidecars.special_tokens import SpecialTokens
from distconv.sidecars.tokenizer import Vocabulary, read_vocabulary
from distconv.storage.local import LocalStorage
from tests.sidecars.conftest import packaged_file
from tests.sidecars.test_tokenizer import CONTROL, add_piece
from tests.sidecars.written_tokenizers import load, write_tokenizer

Message = dict[str, str]
Conversation = list[Message]

SYSTEM = {"role": "system", "content": " Be brief.\n"}
USER = {"role": "user", "content": " Why is 1 + 1\n  not 3?  "}
ANSWER = {"role": "assistant", "content": "\nIt is 2. 😀 "}
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, ANSWER, USER],
    [SYSTEM, USER, ANSWER, USER],
    [SYSTEM, USER, ANSWER, USER, ANSWER, USER],
]
HEAD, TAIL = "<|start_header_id|>", "<|end_header_id|>\n\n"


def write(folder: Path, vocabulary: Vocabulary, chat: str) -> PreTrainedTokenizerFast:
    special_tokens: SpecialTokens = "llama-3" if chat == "llama-3" else "llama-3.1"
    return load(write_tokenizer(folder, vocabulary, special_tokens, chat=chat, instruct=True))


@pytest.fixture(scope="module")
def llama_2(pieces_vocabulary, tmp_path_factory) -> PreTrainedTokenizerFast:
    return write(tmp_path_factory.mktemp("llama_2"), pieces_vocabulary, "llama-2")


@pytest.fixture(scope="module")
def step_file(pieces_file, tmp_path_factory) -> Path:
    """A model with the piece that ends Code Llama 70B's messages."""
    path = tmp_path_factory.mktemp("step") / "tokenizer.model"
    path.write_bytes(add_piece(pieces_file.read_bytes(), "<step>", CONTROL))
    return path


@pytest.fixture(scope="module")
def code_llama_70b(step_file, tmp_path_factory) -> PreTrainedTokenizerFast:
    vocabulary = read_vocabulary(LocalStorage(), str(step_file))
    return write(tmp_path_factory.mktemp("code_llama_70b"), vocabulary, "code-llama-70b")


@pytest.fixture(scope="module")
def llama_3(llama_3_vocabulary, tmp_path_factory) -> PreTrainedTokenizerFast:
    return write(tmp_path_factory.mktemp("llama_3"), llama_3_vocabulary, "llama-3")


@pytest.fixture(scope="module")
def llama_31(llama_3_folder) -> PreTrainedTokenizerFast:
    return load(llama_3_folder)


def render_ids(tokenizer: PreTrainedTokenizerFast, messages: Conversation) -> list[int]:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def llama_2_ids(oracle: sentencepiece.SentencePieceProcessor, dialog: Conversation) -> list[int]:
    """Encode as Meta's llama/generation.py does (chat_completion)."""
    if dialog[0]["role"] == "system":
        text = "<<SYS>>\n" + dialog[0]["content"] + "\n<</SYS>>\n\n" + dialog[1]["content"]
        dialog = [{"role": "user", "content": text}, *dialog[2:]]
    ids: list[int] = []
    for prompt, answer in zip(dialog[::2], dialog[1::2], strict=False):
        text = f"[INST] {prompt['content'].strip()} [/INST] {answer['content'].strip()} "
        ids += [1, *oracle.encode(text), 2]
    return [*ids, 1, *oracle.encode(f"[INST] {dialog[-1]['content'].strip()} [/INST]")]


def code_llama_70b_ids(oracle: sentencepiece.SentencePieceProcessor, dialog: Conversation) -> list[int]:
    """Encode as Meta's codellama/llama/generation.py does (dialog_prompt_tokens)."""
    if dialog[0]["role"] != "system":
        dialog = [{"role": "system", "content": ""}, *dialog]
    ids = [1]
    for message in dialog:
        ids += oracle.encode(f" Source: {message['role']}")
        if message["content"]:
            ids += oracle.encode("\n\n " + message["content"].strip())
        ids.append(oracle.piece_to_id("<step>"))
    ids += oracle.encode(" Source: assistant\nDestination: user")
    return ids + list(oracle.encode("\n\n "))


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_llama_2_prompts_have_the_ids_of_metas_code(llama_2, pieces_file, messages):
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(pieces_file))
    assert render_ids(llama_2, messages) == llama_2_ids(oracle, messages)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_code_llama_70b_prompts_have_the_ids_of_metas_code(code_llama_70b, step_file, messages):
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(step_file))
    assert render_ids(code_llama_70b, messages) == code_llama_70b_ids(oracle, messages)


@pytest.mark.product
@pytest.mark.parametrize("name", ["llama_3", "llama_31"])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_llama_3_prompts_have_the_ids_of_metas_code(name, messages, request):
    from llama_models.datatypes import RawMessage
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer

    oracle = ChatFormat(Tokenizer.get_instance())
    # Meta's Llama 3 code trims contents; the present one leaves that to its callers.
    trimmed = [RawMessage(role=each["role"], content=each["content"].strip()) for each in messages]
    expected = oracle.encode_dialog_prompt(trimmed).tokens
    assert render_ids(request.getfixturevalue(name), messages) == expected


def published_prompts(heading: str) -> Sequence[str]:
    """Take the examples under a heading of Meta's description of the format, as the package carries it."""
    document = packaged_file("llama_models", "llama3_1/prompt_format.md").read_text()
    part = document.split(f"## {heading}\n", 1)[1]
    prompt, answer = part.split("```\n")[1:5:2]
    # The examples end system messages with a line end of their own, and show open ends on lines.
    return prompt.removesuffix("\n\n\n").replace("\n<|eot_id|>", "<|eot_id|>"), answer.strip()


HELPFUL = {"role": "system", "content": "You are a helpful assistant."}
TOOL = {
    "type": "function",
    "function": {
        "name": "trending_songs",
        "description": "Returns the trending songs on a Music site",
        "parameters": {
            "type": "object",
            "properties": [
                {"n": {"type": "object", "description": "The number of songs to return"}},
                {"genre": {"type": "object", "description": "The genre of the songs to return"}},
            ],
            "required": ["n"],
        },
    },
}


def render(tokenizer: PreTrainedTokenizerFast, messages: Sequence[object], **options: object) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def test_tool_definitions_are_rendered_as_meta_describes(llama_31):
    expected, answer = published_prompts("JSON based tool calling")
    messages = [HELPFUL, {"role": "user", "content": "Use tools to get latest trending songs"}]
    tool = dict(TOOL["function"])
    rendered = render(
        llama_31, messages, tools=[TOOL], date_string="21 September 2024", add_generation_prompt=True
    )
    # Meta's example keeps a short list on one line; JSON indented throughout does not.
    rendered = rendered.replace('[\n                "n"\n            ]', '["n"]')
    assert rendered.strip() == expected.strip()
    arguments = {"n": "10", "genre": "all"}
    call = {"type": "function", "function": {"name": tool["name"], "arguments": arguments}}
    called = render(llama_31, [*messages, {"role": "assistant", "tool_calls": [call]}])
    assert called.endswith(HEAD + "assistant" + TAIL + answer)


def test_builtin_tools_are_rendered_as_meta_describes(llama_31):
    expected, answer = published_prompts("Builtin Tool Calling")
    messages = [HELPFUL, {"role": "user", "content": "Search the web for the latest price of 1oz gold?"}]
    rendered = render(
        llama_31,
        messages,
        builtin_tools=["brave_search", "wolfram_alpha"],
        date_string="21 September 2024",
        add_generation_prompt=True,
    )
    assert rendered.strip() == expected.strip()
    call = {"function": {"name": "brave_search", "arguments": {"query": "latest price of 1oz gold"}}}
    assert render(llama_31, [*messages, {"role": "assistant", "tool_calls": [call]}]).endswith(answer)


def test_the_code_interpreter_is_rendered_as_meta_describes(llama_31):
    expected, answer = published_prompts("Builtin Code Interpreter")
    question = "Write code to check if number is prime, use that to see if the number 7 is prime"
    messages = [{"role": "user", "content": question}]
    rendered = render(llama_31, messages, builtin_tools=["code_interpreter"], add_generation_prompt=True)
    assert rendered.strip() == expected.strip()
    code = answer.removeprefix("<|python_tag|>").removesuffix("<|eom_id|>")
    call = {"name": "code_interpreter", "arguments": {"code": code}}
    assert render(llama_31, [*messages, {"role": "assistant", "tool_calls": [call]}]).endswith(answer)


@pytest.mark.parametrize("role", ["tool", "ipython"])
def test_what_a_tool_gave_comes_from_the_role_ipython(llama_31, role):
    messages = [USER, {"role": role, "content": " 7 "}]
    assert render(llama_31, messages).endswith(f"{HEAD}ipython{TAIL}7<|eot_id|>")
    messages = [USER, {"role": role, "content": {"result": 7}}]
    assert render(llama_31, messages).endswith(f'{HEAD}ipython{TAIL}{{"result": 7}}<|eot_id|>')


def test_python_tag_and_end_of_message_are_single_tokens(llama_31):
    call = {"function": {"name": "brave_search", "arguments": {"query": "gold"}}}
    ids = render_ids(llama_31, [USER, {"role": "assistant", "tool_calls": [call]}])
    assert 128008 in ids
    assert 128010 in ids


def test_without_tools_nothing_is_added(llama_31, llama_3):
    messages = [SYSTEM, USER, ANSWER]
    expected = "<|begin_of_text|>" + "".join(
        f"{HEAD}{each['role']}{TAIL}{each['content'].strip()}<|eot_id|>" for each in messages
    )
    assert render(llama_31, messages) == render(llama_3, messages) == expected


@pytest.mark.parametrize("name", ["llama_2", "code_llama_70b"])
@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([USER, USER], "message 2 has the role 'user', expected 'assistant'"),
        ([SYSTEM, ANSWER], "message 2 has the role 'assistant', expected 'user'"),
        ([ANSWER], "message 1 has the role 'assistant', expected 'user'"),
        ([USER, SYSTEM], "message 2 has the role 'system', expected 'assistant'"),
        ([USER, {"role": "tool", "content": "7"}], "message 2 has the role 'tool', expected 'assistant'"),
    ],
)
def test_roles_that_do_not_take_turns_are_refused(name, messages, complaint, request):
    with pytest.raises(TemplateError, match=complaint):
        render(request.getfixturevalue(name), messages)


@pytest.mark.parametrize("name", ["llama_3", "llama_31"])
def test_unknown_roles_are_refused(name, request):
    with pytest.raises(TemplateError, match="message 2 has the role 'critic', expected 'system'"):
        render(request.getfixturevalue(name), [USER, {"role": "critic", "content": "no"}])


@pytest.mark.parametrize("name", ["llama_2", "code_llama_70b", "llama_3", "llama_31"])
def test_contents_that_are_no_text_are_refused(name, request):
    with pytest.raises(TemplateError, match="message 1: content is not a text"):
        render(request.getfixturevalue(name), [{"role": "user", "content": [{"type": "image"}]}])


def test_two_calls_at_a_time_are_refused(llama_31):
    call = {"function": {"name": "brave_search", "arguments": {"query": "gold"}}}
    with pytest.raises(TemplateError, match="message 2 has 2 tool calls, expected one"):
        render(llama_31, [USER, {"role": "assistant", "tool_calls": [call, call]}])
