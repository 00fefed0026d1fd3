# docker build -t veil . && docker run --rm -v "$PWD:/veil" veil --cores all
# The environment of `make env`, and the study as it stood; a mounted copy of it takes its place.
FROM python:3.11-slim-bookworm

# A place to write for whichever user runs it.
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1

WORKDIR /veil
COPY requirements.in constraints.txt ./
RUN pip install --no-cache-dir -r requirements.in -c constraints.txt

COPY Snakefile ./
COPY config config
COPY profiles profiles
COPY workflow workflow

ENTRYPOINT ["snakemake"]
CMD ["--cores", "all"]
