"""How long an op takes in tf.data on one core: a process of its own, for TensorFlow's threads are set once."""

import os
import subprocess
import sys

CODE = """
import sys, time
sys.path[:0] = {paths!r}
import {module} as t
import tensorflow as tf
graph = tf.data.Dataset.range(10**6)
graph = graph.map(tf.autograph.experimental.do_not_convert({made}), num_parallel_calls=1)
options = tf.data.Options()
options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
ready = iter(graph.with_options(options))
times = []
for _ in range(6):
    start = time.process_time()
    for _ in range({images}):
        next(ready)
    times.append((time.process_time() - start) / {images})
print(1000 * min(times))
"""


def milliseconds(module, made, images):
    """CPU time per image, the shortest of six rounds of `images`.

    module: a test module in data/ · made: an expression of a function from the number of an image to tensors, `t` in it
    the module.
    """
    here = os.path.dirname(__file__)
    paths = [here, os.path.join(here, "data")]
    code = CODE.format(paths=paths, module=module, made=made, images=images)
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
