"""Chat templates of four families: SmolLM2's own, the others written for these tests in their style."""

from __future__ import annotations

SMOLLM = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

# Llama 3 style: headers, a date that falls back to today's, tools as indented JSON.
LLAMA = """{%- macro turn(role, text) -%}
<|start_header_id|>{{ role }}<|end_header_id|>\\n\\n{{ text | trim }}<|eot_id|>
{%- endmacro %}
{%- set today = date_string if date_string is defined else strftime_now("%d %b %Y") %}
{%- set rules = "" %}
{%- set turns = messages %}
{%- if messages and messages[0].role == "system" %}
    {%- set rules = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- endif %}
{#- A comment, and a system turn that is always there. #}
{{- bos_token }}
{{- turn("system", "Today Date: " + today + "\\n\\n" + rules | trim) }}
{%- for message in turns %}
    {%- if message.role == "tool" %}
        {%- if message.content is mapping or message.content is not string %}
            {{- turn("ipython", message.content | tojson) }}
        {%- else %}
            {{- turn("ipython", message.content) }}
        {%- endif %}
    {%- elif "tool_calls" in message %}
        {%- if message.tool_calls | length > 1 %}
            {{- raise_exception("one tool call at a time") }}
        {%- endif %}
        {%- set call = (message.tool_calls | first).function %}
        {{- turn("assistant", '{"name": "' ~ call.name ~ '", "parameters": ' ~ (call.arguments | tojson) ~ "}") }}
    {%- elif tools and loop.first %}
        {%- set shown = namespace(text="") %}
        {%- for tool in tools %}
            {%- set shown.text = shown.text + (tool | tojson(indent=4)) + "\\n\\n" %}
        {%- endfor %}
        {{- turn(message.role, shown.text + message.content) }}
    {%- else %}
        {{- turn(message["role"], message["content"]) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""

# Mistral style: alternating roles are enforced; tools stand before the last user turn.
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set preamble, rest = messages[0]["content"], messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- set spoken = namespace(count=0) %}
{%- for message in rest if message.tool_calls is not defined and message.role != "tool" %}
    {%- if (message.role == "user") != (spoken.count % 2 == 0) %}
        {{- raise_exception("user and assistant must take turns") }}
    {%- endif %}
    {%- set spoken.count = spoken.count + 1 %}
{%- endfor %}
{%- set questions = rest | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message.role == "user" %}
        {%- if tools is defined and tools is not none and message == questions[-1] %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}
                {{- "{" }}
                {%- for key, value in tool.function.items() if key != "return" %}
                    {{- '"' + key + '": ' + (value | tojson) }}
                    {{- "" if loop.last else ", " }}
                {%- endfor %}
                {{- "}" if loop.last else "}, " }}
            {%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST]" + (preamble ~ "\\n\\n" if loop.last and preamble is defined else "") + message.content + "[/INST]" }}
    {%- elif message.tool_calls is defined %}
        {{- "[TOOL_CALLS][" }}
        {%- for call in message.tool_calls %}
            {%- if call.id is not defined or call.id | length != 9 %}
                {{- raise_exception("the id of a tool call has nine characters") }}
            {%- endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
            {%- if not loop.last %}{{ ", " }}{% endif %}
        {%- endfor %}
        {{- "]" + eos_token }}
    {%- elif message.role == "assistant" %}
        {{- " " + message.content | trim + eos_token }}
    {%- elif message.role == "tool" %}
        {{- '[TOOL_RESULTS]{"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("unknown role " + message.role) }}
    {%- endif %}
{%- endfor %}
"""

# Qwen 3 style: string methods, a reversed slice, a look at the neighbours, optional thinking.
QWEN = """{%- set has_rules = messages[0].role == 'system' %}
{%- if tools or has_rules %}
    {{- '<|im_start|>system\\n' }}
    {{- messages[0].content if has_rules else '' }}
    {%- for tool in tools or [] %}
        {{- '\\n' ~ (tool | tojson) }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set last = namespace(question=-1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set last.question = messages | length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in (messages[1:] if has_rules else messages) %}
    {%- if message.role == 'assistant' %}
        {%- set parts = (message.content or '').split('</think>') %}
        {%- set thought = parts[0].split('<think>')[-1].strip('\\n') if parts | length > 1 else '' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if thought and loop.index0 >= last.question %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- parts[-1].lstrip('\\n').rstrip() }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n' ~ (call.function | tojson(sort_keys=true)) ~ '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.previtem is not defined or loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.nextitem is not defined or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>%s\\n' | format(message.role) ~ message.content.replace('\\r\\n', '\\n') ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
