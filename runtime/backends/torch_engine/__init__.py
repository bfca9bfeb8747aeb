"""A small white-box engine on torch: its cache, its scheduler and its steps can be looked at.

shape         what a model file says about the model
weights       tensors from GGUF or safetensors, under one set of names
linear        one matrix in one of three precisions
model         the layers; attention is handed in
kv_pool       slots of keys and values, one token each
radix         which token sequences the slots hold, shared by all requests
sequence      one request on its way through the engine
scheduler     which tokens the next step computes
attention     one exact attention from parts that share keys
decode_batch  keys and values of the running requests, laid out for decoding
token_sets    prefills that drop tokens on the way (FastKV, SwiftKV)
sampling      the next token of each request
grammar       what a schema or a pattern allows next
engine        the step: schedule, compute, sample, commit
session       prompts that grow while they are prefilled
kv_transfer   prefixes saved and loaded
backend       the engine behind Halo's seam
"""
