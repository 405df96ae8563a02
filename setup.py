"""Packaging of hm3-tf."""

import pathlib
import re

from setuptools import setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "hm3_tf" / "__init__.py").read_text()).group(1)

setup(
    name="hm3-tf",
    version=VERSION,
    description="Conversion-rate models that use micro and macro behaviors: HM3 (SIGIR 2021) and its family, distributed",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=["hm3_tf", "hm3_tf.report", "hm3_tf.experiment", "hm3_tf.verbs", "data_pipeline", "data_pipeline.sources"],
    package_data={"hm3_tf.report": ["head.html", "page.html", "validation.html"]},
    entry_points={"console_scripts": ["hm3=hm3_tf.cli:main"]},
    install_requires=[
        "tensorflow>=2.17,<2.22",  # the engine
        "tf-keras>=2.17,<2.22",  # Keras 2: what TensorFlow Recommenders and multi-worker fit need
        "tensorflow-recommenders>=0.7.7,<0.8",  # Model, Task and the cross layer
        "tensorboard>=2.17,<2.22",  # writes its events; TensorFlow 2.20 and later do not bring it
        'tensorflow-io>=0.37.1,<0.38; sys_platform == "linux"',  # remote file systems, loaded on use only
        "numpy>=1.26,<3",  # plans, statistics, exact metrics
        "absl-py>=2.1,<3",  # flags
        "ml-collections>=1.1,<2",  # flags that set fields of a typed config
        "pyarrow>=17,<27",  # raw logs and predictions in Parquet and CSV
        "tqdm>=4.66,<5",  # progress bars
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.17,<2.22"],  # CUDA libraries
        "ray": [
            "ray[train,data]>=2.51,<3"
        ],  # launches and converts on clusters; before 2.51 Ray Train ran under Ray Tune
        "serving": [
            "tensorflow-serving-api>=2.17,<2.22"
        ],  # requests to TensorFlow Serving: to warm up with, and a client's
        "join": ["duckdb>=1.5,<3"],  # joins impressions with events, on disk where memory ends
        "report": [
            "matplotlib>=3.8,<4",  # plots
            "jinja2>=3.1,<4",  # the page, with all text escaped
        ],
        "experiment": [
            "scipy>=1.11,<2",  # Student's t
            "matplotlib>=3.8,<4",  # its plots
        ],
        "dev": [
            "pytest>=8,<10",  # tests
            "pytest-timeout>=2.3,<3",  # no test hangs
            "pytest-xdist>=3.5,<4",  # tests in two processes
            "hypothesis>=6.100,<7",  # properties
            "scikit-learn>=1.5,<2",  # oracle of the metrics
            "kubeflow-training>=1.9,<2",  # models of Kubernetes and Kubeflow, which the manifests must fit
            "pyyaml>=6,<7",  # reads the manifests
            "moto[s3]>=5,<6",  # an S3 server of this machine
            "flask>=3,<4",  # of moto's server: its extra `server` brings all services of AWS
            "flask-cors>=5,<7",  # as flask
            "playwright>=1.45,<2",  # looks at the report in the system's Chromium
            "ruff>=0.6,<1",  # lint and format
            "mypy>=1.11,<3",  # types
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
