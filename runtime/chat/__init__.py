"""Conversations as prompts, by a model's own chat template, in which data stays data (promise P6).

`sandbox` runs templates and `turns` builds what they see. Two renderers use them, since engines
take prompts in two ways. `template` is for engines that tokenize here: the prompt is pieces of
text. `format` is for servers that tokenize text themselves: what a template puts around contents is
rendered once for each shape of conversation, and the prompt is token ids only where it has to be.
`tokenizer_files` reads the folder of a model's tokenizer.
"""
