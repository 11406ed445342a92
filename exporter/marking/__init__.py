"""The invisible mark: what a key and 32 bits become in a picture, and how they are found again.

``key`` reads and makes keys, ``pattern`` turns a key and a payload into one pattern of signs,
``embed`` says how strongly each sign goes into a picture, ``read`` finds it. numpy alone: the
same arithmetic stands in ``network.mark`` as operators of the decoder.
"""
