"""How chat templates (Jinja) read the content of a message: macros that stand before a layout.

``text(message, number)`` gives what was said, ``result(message, number)`` what a tool gave; ``number`` counts
messages from 1, for what is raised.
"""

TEXT = r"""
{%- macro text(message, number) -%}
    {%- if message['content'] is not string -%}
        {{- raise_exception('message ' ~ number ~ ': content is not a text') -}}
    {%- endif -%}
    {{- message['content'] | trim -}}
{%- endmacro -%}
"""

# What a tool gave, which is a text or anything that JSON can say.
RESULT = r"""
{%- macro result(message, number) -%}
    {%- if message['content'] is string -%}
        {{- message['content'] | trim -}}
    {%- else -%}
        {{- message['content'] | tojson -}}
    {%- endif -%}
{%- endmacro -%}
"""

# A content of parts is the text of them all, in which images have their places.
PARTS = r"""
{%- macro join(message, number) -%}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- elif message['content'] is mapping or message['content'] is not iterable or message['content'] is undefined -%}
        {{- raise_exception('message ' ~ number ~ ': content is neither a text nor a list of parts') -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}
                {{- '<|image|>' -}}
            {%- elif part['type'] == 'text' and part['text'] is string -%}
                {{- part['text'] -}}
            {%- else -%}
                {{- raise_exception(
                    'message ' ~ number ~ ': part ' ~ loop.index ~ ' is neither a text nor an image'
                ) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro text(message, number) -%}
    {{- join(message, number) | trim -}}
{%- endmacro -%}
{%- macro result(message, number) -%}
    {%- set content = message['content'] -%}
    {%- set is_list = content and content is iterable and content is not mapping -%}
    {%- if content is string or is_list and content[0]['type'] is defined -%}
        {{- text(message, number) -}}
    {%- else -%}
        {{- content | tojson -}}
    {%- endif -%}
{%- endmacro -%}
"""
