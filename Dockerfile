FROM python:3.12-slim

RUN useradd --create-home --uid 1000 search && mkdir /state && chown search:search /state
WORKDIR /source

# The dependencies first: they are large and change rarely. For machines without a GPU there is a smaller torch:
# docker compose build --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /tmp/requirements.txt \
    && pip install --no-cache-dir -r /tmp/requirements.txt

COPY README.md LICENSE ./
COPY hpo hpo
COPY metrics metrics
COPY storage storage
COPY trainers trainers
RUN pip install --no-cache-dir --no-deps .

# Caches, notes' pictures and results live in one volume; the code is read from site-packages, not from /source.
ENV PEFT_PARETO_HOME=/state/home PYTHONUNBUFFERED=1
USER search
WORKDIR /state
CMD ["python", "-m", "hpo.launch", "--help"]
