"""Image-set formats. The folder is the registry: one file here adds a format to every verb.

The file of a format has `open_set(spec, *, image_size, on_bad) -> ImageSet` and declares the rest in literal constants,
which are read without importing the file. The first line of its docstring is its title in the man pages.

Formats of files and folders:
    ACCEPTS     what it opens, in a few words for error messages: "an .npz file"
    claims      function: whether a path is of this format, judged by its content
    PLACE       optional: the order of recognition, 0 by default; formats that claim more than their own come last
Named sets (`digits:16`), whose name before the colon is that of the file:
    NAMED       how the name is written: "digits:[SIZE][:SPLIT]"
Formats that can be written:
    SUFFIX      the ending that selects the format, such as ".npz"
    write       function (path, rows, chunks, *, class_names, header), atomic and with one chunk in memory at a time
    made_with   function: what a written file records of `header`; {} for a file of another tool
    write_encoded  optional function (path, rows, images, *, class_names, header): writes image files as they are, which
                may differ in size; images: an iterator over `data.encoded.EncodedImage`
    check_keys  optional function (rows, where): refuses keys that the format cannot store
    verify      optional function (path, watch): checks what a set records of its content; `watch` counts bytes and
                hashes. Without it `corecli verify` reads all images
Contract tests open the sets that they write; a format that cannot be written may declare one to open instead:
    EXAMPLE     a named set, or the name and content of a file: {"mix.json": "..."}
"""
