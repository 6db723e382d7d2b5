"""Layouts of chat templates (Jinja) for models that call tools: Llama 3.1 and later, and 4.

Each stands behind macros of ``chat_contents``.
"""

# As in Llama 3; with tools as Meta's llama3_1/prompt_format.md has it ("JSON based tool calling",
# "Built-in tools"). Beyond the usual arguments, ``builtin_tools`` names brave_search and
# wolfram_alpha, and ``date_string`` gives today's date: it is left out unless asked for, so that
# a conversation renders the same on every day.
LLAMA_31_LAYOUT = r"""
{%- macro start(role) -%}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' -}}
{%- endmacro -%}
{%- macro call(tool) -%}
    {%- set arguments = tool['arguments'] -%}
    {%- if arguments is string -%}
        {%- set pretty = arguments -%}
    {%- else -%}
        {%- set pretty = arguments | tojson(indent=4) | replace('\n', '\n    ') -%}
    {%- endif -%}
    {{- '<|python_tag|>' -}}
    {%- if tool['name'] in ['brave_search', 'wolfram_alpha'] and arguments is mapping -%}
        {{- tool['name'] + '.call(query="' + arguments['query'] + '")' -}}
    {%- elif tool['name'] == 'code_interpreter' and arguments is mapping -%}
        {{- arguments['code'] -}}
    {%- else -%}
        {{- '{\n    "type": "function",\n    "name": ' + tool['name'] | tojson -}}
        {{- ',\n    "parameters": ' + pretty + '\n}' -}}
    {%- endif -%}
    {{- '<|eom_id|>' -}}
{%- endmacro -%}
{%- macro functions() -%}
    {{- start('user') + "Answer the user's question by making use of the following functions if needed.\n" -}}
    {{- 'If none of the function can be used, please say so.\n' -}}
    {{- 'Here is a list of functions in JSON format:\n' -}}
    {%- for tool in tools -%}
        {{- tool | tojson(indent=4) + '\n\n' -}}
    {%- endfor -%}
    {{- 'Return function calls in JSON format.<|eot_id|>' -}}
{%- endmacro -%}
{%- set builtin = builtin_tools | default([], true) | reject('equalto', 'code_interpreter') | list -%}
{%- set first = namespace(system='', count=0) -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set first.system = text(messages[0], 1) -%}
    {%- set first.count = 1 -%}
{%- endif -%}
{{- bos_token -}}
{%- if tools or builtin_tools -%}
    {{- start('system') + 'Environment: ipython' -}}
    {%- if builtin -%}
        {{- '\nTools: ' + builtin | join(', ') -}}
    {%- endif -%}
    {%- if date_string -%}
        {{- ('\n' if builtin else '\n\n') + 'Cutting Knowledge Date: December 2023\n' -}}
        {{- 'Today Date: ' + date_string -}}
    {%- endif -%}
    {%- if first.count -%}
        {{- '\n\n' + first.system -}}
    {%- endif -%}
    {{- '<|eot_id|>' -}}
    {%- if tools -%}
        {{- functions() -}}
    {%- endif -%}
{%- elif first.count -%}
    {{- start('system') + first.system + '<|eot_id|>' -}}
{%- endif -%}
{%- for message in messages[first.count:] -%}
    {%- set number = loop.index + first.count -%}
    {%- if message['role'] in ['tool', 'ipython'] -%}
        {{- start('ipython') + result(message, number) + '<|eot_id|>' -}}
    {%- elif message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception(
            'message ' ~ number ~ " has the role '" ~ message['role']
            ~ "', expected 'system', 'user', 'assistant', 'tool' or 'ipython'"
        ) -}}
    {%- elif message['tool_calls'] -%}
        {%- if message['tool_calls'] | length != 1 -%}
            {{- raise_exception(
                'message ' ~ number ~ ' has ' ~ message['tool_calls'] | length
                ~ ' tool calls, expected one: the models make one call at a time'
            ) -}}
        {%- endif -%}
        {%- set tool = message['tool_calls'][0] -%}
        {{- start(message['role']) -}}
        {%- if message['content'] -%}
            {{- text(message, number) -}}
        {%- endif -%}
        {{- call(tool['function'] if tool['function'] else tool) -}}
    {%- else -%}
        {{- start(message['role']) + text(message, number) + '<|eot_id|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- start('assistant') -}}
{%- endif -%}
"""

# Meta's llama4/chat_format.py ends calls and what they give as messages, not as turns. It encodes headers and
# contents one by one: line ends at the beginning of a content would melt into those of the header. Tools
# are described as Transformers' ``Llama4Processor`` does by default, and asked for in the form that Meta's code
# takes for a call (``decode_assistant_message``), between the tokens that it takes off.
LLAMA_4_LAYOUT = r"""
{%- macro start(role) -%}
    {{- '<|header_start|>' + role + '<|header_end|>\n\n' -}}
{%- endmacro -%}
{%- macro call(tool) -%}
    {%- set arguments = tool['arguments'] -%}
    {{- '<|python_start|>{"name": ' + tool['name'] | tojson + ', "parameters": ' -}}
    {{- (arguments if arguments is string else arguments | tojson) + '}<|python_end|>' -}}
{%- endmacro -%}
{%- macro functions() -%}
    {{- 'Given the following functions, please respond with a JSON for a function call ' -}}
    {{- 'with its proper arguments that best answers the given prompt.\n\n' -}}
    {{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.' -}}
    {{- 'Do not use variables.\n\n' -}}
    {%- for tool in tools -%}
        {{- tool | tojson(indent=4) + '\n\n' -}}
    {%- endfor -%}
{%- endmacro -%}
{%- set first = namespace(user=1) -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set first.user = 2 -%}
{%- endif -%}
{%- if tools and (messages | length < first.user or messages[first.user - 1]['role'] != 'user') -%}
    {{- raise_exception(
        'message ' ~ first.user ~ " is not from 'user': that one describes the tools, first of all or after 'system'"
    ) -}}
{%- endif -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] in ['tool', 'ipython'] -%}
        {{- start('ipython') + result(message, loop.index) + '<|eom|>' -}}
    {%- elif message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception(
            'message ' ~ loop.index ~ " has the role '" ~ message['role']
            ~ "', expected 'system', 'user', 'assistant', 'tool' or 'ipython'"
        ) -}}
    {%- elif message['tool_calls'] -%}
        {%- if message['tool_calls'] | length != 1 -%}
            {{- raise_exception(
                'message ' ~ loop.index ~ ' has ' ~ message['tool_calls'] | length
                ~ ' tool calls, expected one: the models make one call at a time'
            ) -}}
        {%- endif -%}
        {%- set tool = message['tool_calls'][0] -%}
        {{- start(message['role']) -}}
        {%- if message['content'] -%}
            {{- text(message, loop.index) -}}
        {%- endif -%}
        {{- call(tool['function'] if tool['function'] else tool) + '<|eom|>' -}}
    {%- else -%}
        {{- start(message['role']) -}}
        {%- if tools and loop.index == first.user -%}
            {{- functions() -}}
        {%- elif tools and loop.index < first.user -%}
            {{- 'Environment: ipython\n' -}}
        {%- endif -%}
        {{- text(message, loop.index) + '<|eot|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- start('assistant') -}}
{%- endif -%}
"""
