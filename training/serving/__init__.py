"""A run as a scorer: raw values of a request in, probabilities out. One process, without Spark, Petastorm or ranks.

    network     the arithmetic: encoded columns → probabilities, by the towers and the graph of training.model
    values      one value of a request: ids, numbers, vectors, and what is wrong with one
    requests    contexts and candidates → encoded columns
    context_rows  rows of a dataset → encoded columns
    scorer      what a user holds: predict, predict_rows
    open_run    RUN → scorer

Encoded columns have the names and values of a dataset's columns (docs/dataset.md), for N contexts or impressions:

    user_age              int [N], rows of the field's table; 0 is missing, 1 out of vocabulary
    user_shops            int [V], the rows of a multi-valued field, of all contexts one after the other
    user_shops__length    int [N], how many of them each context has
    user_shops__weight    float32 [V], of a weighted field
    item_price            float32 [N], a number as logged; NaN is missing
    item_image            float32 [N, width], a vector as logged; NaN is missing
"""
