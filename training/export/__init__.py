"""A run as a folder that a service takes, without this project: graph, vocabularies, schema, example, reference server.

    settings     what jobs.export can be asked for
    trace        the network of training.serving as a graph: torch.export, AOTInductor, ONNX
    lookup_files vocabularies as .npy files: raw id → row
    schema       schema.json: the fields, how ids are written, the outputs, where it all comes from
    samples      requests of raw values: what the rows of a dataset stand for, and made-up ones
    check        the feed, the Python scorer and the exported folder, asked the same; the loss of AUC by int8
    folder       jobs.export: all of it, atomically

standalone/ is what EXPORT/ runs. Nothing here imports it, and it imports nothing of this project.
"""
