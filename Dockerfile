# One image for all services of the shop; the command says which one runs.
ARG PYTHON_IMAGE=python:3.13-slim
FROM ${PYTHON_IMAGE}
WORKDIR /app
RUN python3 -m venv /venv && useradd --create-home eventmesh
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
COPY pyproject.toml constraints.txt README.md ./
COPY eventmesh eventmesh
# build/wheels is there after `make image`, for machines whose builds reach no package index. Docker
# takes a pattern that matches nothing beside a file that exists, if the folder is a pattern, too.
COPY constraints.txt buil[d]/wheels wheels/
RUN if ls wheels/*.whl >/dev/null 2>&1; then \
      pip install --quiet --no-index --find-links wheels --constraint constraints.txt eventmesh; \
    else \
      pip install --quiet --constraint constraints.txt .; \
    fi
COPY services services
COPY schemas schemas
USER eventmesh
ENTRYPOINT ["eventmesh"]
