"""Label files as one chunk."""

from finetune.predict.labelling import label_files


def label_images(model, paths, top_k=1):
    """Return the table of one chunk of files, and the files that were left out."""
    ((table, left_out),) = label_files(model, iter([[str(path) for path in paths]]), top_k)
    return table, left_out
