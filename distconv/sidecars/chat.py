"""Chat templates (Jinja) that render conversations as Meta's own code does.

They use no more than Transformers 4.34 and later give (``tools`` 4.42): ``messages``, ``tools``, ``bos_token``,
``eos_token``, ``add_generation_prompt``, ``raise_exception``, the filters ``trim`` and ``tojson``.
"""

from distconv.sidecars.chat_contents import PARTS, RESULT, TEXT
from distconv.sidecars.chat_tools import LLAMA_4_LAYOUT, LLAMA_31_LAYOUT

# Each turn is a text of its own, from <s> to </s>. The system text is part of the first user
# text, and the two are trimmed together: Meta's llama/generation.py, chat_completion.
_LLAMA_2 = r"""
{%- set system = namespace(text='', count=0) -%}
{%- for message in messages -%}
    {%- if message['content'] is not string -%}
        {{- raise_exception('message ' ~ loop.index ~ ': content is not a text') -}}
    {%- endif -%}
    {%- if loop.first and message['role'] == 'system' -%}
        {%- set system.text = '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' -%}
        {%- set system.count = 1 -%}
    {%- else -%}
        {%- set expected = ['user', 'assistant'][(loop.index0 - system.count) % 2] -%}
        {%- if message['role'] != expected -%}
            {{- raise_exception(
                'message ' ~ loop.index ~ " has the role '" ~ message['role'] ~ "', expected '" ~ expected
                ~ "': after an optional system message, user and assistant must take turns"
            ) -}}
        {%- endif -%}
        {%- if expected == 'user' -%}
            {{- bos_token + '[INST] ' + (system.text + message['content']) | trim + ' [/INST]' -}}
            {%- set system.text = '' -%}
        {%- else -%}
            {{- ' ' + message['content'] | trim + ' ' + eos_token -}}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
"""

# Meta's llama/generation.py, dialog_prompt_tokens, encodes a message's header and its body one
# by one, and sentencepiece puts a space before each text: that is the space before the line
# ends. A conversation without a system message gets an empty one, which is a header only.
_CODE_LLAMA_70B = r"""
{{- bos_token -}}
{%- set system = namespace(count=1) -%}
{%- if not messages or messages[0]['role'] != 'system' -%}
    {{- ' Source: system<step>' -}}
    {%- set system.count = 0 -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if message['content'] is not string -%}
        {{- raise_exception('message ' ~ loop.index ~ ': content is not a text') -}}
    {%- endif -%}
    {%- if not (loop.first and system.count) -%}
        {%- set expected = ['user', 'assistant'][(loop.index0 - system.count) % 2] -%}
        {%- if message['role'] != expected -%}
            {{- raise_exception(
                'message ' ~ loop.index ~ " has the role '" ~ message['role'] ~ "', expected '" ~ expected
                ~ "': after an optional system message, user and assistant must take turns"
            ) -}}
        {%- endif -%}
    {%- endif -%}
    {{- ' Source: ' + message['role'] -}}
    {%- if message['content'] -%}
        {{- ' \n\n ' + message['content'] | trim -}}
    {%- endif -%}
    {{- '<step>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- ' Source: assistant\nDestination: user \n\n ' -}}
{%- endif -%}
"""

_LLAMA_3 = (
    TEXT
    + r"""
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception(
            'message ' ~ loop.index ~ " has the role '" ~ message['role']
            ~ "', expected 'system', 'user' or 'assistant'"
        ) -}}
    {%- endif -%}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' -}}
    {{- text(message, loop.index) + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
"""
)

CHAT_TEMPLATES = {
    "llama-2": _LLAMA_2,
    "code-llama-70b": _CODE_LLAMA_70B,
    "llama-3": _LLAMA_3,
    "llama-3.1": TEXT + RESULT + LLAMA_31_LAYOUT,
    "llama-3.2-vision": PARTS + LLAMA_31_LAYOUT,
    "llama-4": PARTS + LLAMA_4_LAYOUT,
}
"""Templates by name: Llama 2 chat and Code Llama Instruct to 34B; Code Llama 70B; Llama 3; 3.1 and later; of
models with images, 3.2 Vision and 4."""
