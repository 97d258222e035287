# Build from a clone:
#   docker build --tag dpt .                                        for NVIDIA cards; also runs on a CPU
#   docker build --tag dpt:cpu --build-arg TORCH_INDEX=ADDRESS .    for CPUs, without several GB of CUDA
# ADDRESS is where PyTorch keeps its CPU wheels: see "Get Started" on pytorch.org.
#
#   docker run --rm -v "$PWD:/work" dpt:cpu txt2img --prompt "two green crosses"
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" dpt train stage1 --data_root data
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG TORCH_INDEX=""
COPY requirements.txt /tmp/requirements.txt
RUN torch=$(grep '^torch==' /tmp/requirements.txt) \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch" \
    && pip install --no-cache-dir -r /tmp/requirements.txt
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl && rm -r /wheels /tmp/requirements.txt \
    && useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["dpt"]
CMD ["--help"]
